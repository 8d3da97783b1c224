"""The first hour with pairsan: plan, clean, report, review, split again, export, train; each command is one that was printed.

    python examples/emoji/walk.py OUT [--page docs/walk.md]

Beginning with `plan`, every next command is taken from the last lines of the one before; only the words in capitals (RUN, NAME)
are filled in. Where a person would look through 30 pairs in the browser, this script gives the verdicts through the page's
own routes. `--page` keeps what was seen as a page of the docs.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final
from urllib.request import Request, urlopen

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
REVIEWED: Final = 30
PAGE: Final = """# The first hour

What a terminal shows from the first look at the data to a trained epoch. Each command after the first is one that the
command before has printed as `next`, with the words in capitals filled in. Made by `python examples/emoji/walk.py OUT
--page docs/walk.md`, progress lines left out.

"""


class Walk:
    """Runs commands in a folder and remembers what was seen."""

    def __init__(self, out: Path) -> None:
        """Walk in an empty folder, with links to the data and the checkpoint in it."""
        out.mkdir(parents=True)
        self.out, self.seen = out, list[tuple[str, str]]()
        for name, target in {"crawl": "eval", "tiny-clip": "tiny-clip"}.items():
            (out / name).symlink_to(HERE / target)
        self.filled = {"RUN": "run", "NAME": "local-dir:tiny-clip"}
        self.env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def take(self, command: str, log: str | None = None) -> None:
        """Run a command and remember what it prints, of its log the last line with a word; end where it fails."""
        print(f"$ {command}", flush=True)
        done = subprocess.run(shlex.split(command), cwd=self.out, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout, done.stderr)
            raise SystemExit(done.returncode)
        told = [line for line in done.stderr.splitlines() if log is not None and log in line][-1:]
        self.seen.append((command, "\n".join([done.stdout, *told]).strip() + "\n"))
        print(self.seen[-1][1], flush=True)

    def next(self, verb: str) -> str:
        """Return the printed next command of a verb, with the words in capitals filled in."""
        following = self.seen[-1][1].rpartition("next:\n")[2].splitlines()
        command = next(line for line in following if verb in line)
        return " ".join(self.filled.get(word, word) for word in command.split(" "))

    def look_through(self, command: str) -> None:
        """Call the pairs right below the cut safe, as a reviewer who knows them would, and end the server as Ctrl-C does."""
        print(f"$ {command}", flush=True)
        with subprocess.Popen(shlex.split(command), cwd=self.out, env=self.env, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            lines = []
            for line in server.stdout:
                lines.append(line)
                if line.startswith("http://"):
                    break
            try:
                shown = ask(lines[-1].strip(), "pairs", {"filter": {"label": "risky", "sort": "-cosine"}})["pairs"]
                for pair in shown[:REVIEWED]:
                    ask(lines[-1].strip(), "verdict", {"places": [[pair["shard"], pair["index"]]], "verdict": "safe"})
            finally:
                server.send_signal(signal.SIGINT)
            lines[-1] = "http://127.0.0.1:PORT/TOKEN/\n"
            lines += [f"(in the browser: {REVIEWED} pairs called safe, then Ctrl-C)\n", *server.stdout]
        print("".join(lines), flush=True)
        self.seen.append((command, "".join(lines)))


def ask(address: str, route: str, body: dict[str, object]) -> dict[str, list[dict[str, object]]]:
    """Ask the review page's server."""
    request = Request(address + route, json.dumps(body).encode(), {"Content-Type": "application/json"})  # our own
    with urlopen(request) as answer:
        return json.load(answer)  # type: ignore[no-any-return]


def narrow(line: str) -> str:
    """Return a line broken as a shell would take it."""
    pieces = textwrap.wrap(line, 140, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(pieces) if len(line) > 140 else line


def main() -> None:
    """Walk, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    walk = Walk(args.out.absolute())
    walk.take("pairsan plan crawl --checkpoint tiny-clip --executor local")
    walk.take(walk.next("pairsan clean"))
    after_clean = walk.seen[-1]
    walk.take(walk.next("pairsan report"))
    walk.look_through(walk.next("pairsan review"))
    walk.take(walk.next("pairsan split"))
    walk.take(walk.next("pairsan export"))
    walk.take(
        walk.next("open_clip_train") + " --epochs 1 --batch-size 64 --workers 0 --device cpu --precision fp32", "Train Epoch"
    )
    assert "next:\n" in after_clean[1]
    if args.page is not None:
        lines = [line for command, printed in walk.seen for line in ("```", f"$ {command}", *printed.splitlines(), "```", "")]
        shown = "\n".join(narrow(line.replace(f"{walk.out}/", "")) for line in lines)
        args.page.write_text(PAGE + shown, "utf-8")


if __name__ == "__main__":
    main()
