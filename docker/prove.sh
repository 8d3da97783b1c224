#!/usr/bin/env bash
# The steps of docker/Dockerfile in a fresh virtual environment, for machines without a container engine: install the
# package (not editable, no dev tools), leave the checkout, and clean the bundled pairs with what was installed.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
mkdir "$place/source"
cp -r "$checkout"/{pyproject.toml,constraints.txt,README.md,LICENSE,pipeline,stages,manifests} "$place/source/"
"$place/venv/bin/pip" install --quiet --constraint "$place/source/constraints.txt" "$place/source[s3,cluster]"
rm -rf "$place/source"
cd "$place"
venv/bin/pairsan --version
venv/bin/python -c 'import importlib.util as u; assert not any(map(u.find_spec, ("tests", "benchmarks", "examples")))'
venv/bin/pairsan clean "$checkout/examples/emoji/eval" --checkpoint "$checkout/examples/emoji/tiny-clip" --out run --keep-share 0.5
venv/bin/pairsan verify run
echo "docker/prove.sh: the installed package works outside its checkout"
