"""What speaks against a decision, and what is said where it is refused."""

from stages.label.decision import Decision
from stages.label.fit.calibration import Calibration
from stages.label.fit.mixture import Mixture
from stages.label.fit.reliability import LEAST_SEPARATION
from stages.label.settings import SplitSettings


def doubts_of(found: Decision, settings: SplitSettings) -> list[str]:
    """Return what speaks against the split. A share or cosine chosen by the user needs no mixture to be believed."""
    doubts = _of_score(found)
    if settings.rule == "published":
        return doubts
    if found.calibration is not None:
        return doubts + _of_calibration(found, found.calibration, settings)
    if settings.rule == "monotone":
        if found.mixture is None:
            return ["there are too few distinct cosines to fit two components (10 rows, 3 distinct values at least)"]
        doubts += _of_mixture(found.mixture, found.cut, settings)
    share = found.share_above_cut
    if settings.rule != "keep-share" and not settings.min_safe_share <= share <= settings.max_safe_share:
        doubts.append(
            f"{share:.2%} of the scored rows would be safe, believed are {settings.min_safe_share:.2%} to "
            f"{settings.max_safe_share:.2%} (--min-safe-share, --max-safe-share)"
        )
    return doubts


def _of_score(found: Decision) -> list[str]:
    """Return whether a cut is asked of a score that says nothing; a share of 1 leaves all to the signals, as a scout does."""
    known, chooses = found.reliability, found.num_safe < found.num_scored
    if known is None or not chooses or known.separates or (found.calibration is not None and found.cut is not None):
        return []
    return [
        f"the score does not tell pairs from exchanged ones: AUROC {known.separation:.3f} (0.5 says nothing; "
        f"{LEAST_SEPARATION:g} lies above its 95 % interval)"
    ]


def _of_calibration(found: Decision, calibration: Calibration, settings: SplitSettings) -> list[str]:
    if found.cut is None:
        return [found.people.doubt(settings.alpha) if found.people else calibration.doubt(settings.alpha)]
    if found.share_above_cut < settings.min_safe_share:
        return [f"only {found.share_above_cut:.2%} of the scored rows would be safe (--min-safe-share, --alpha)"]
    return []


def _of_mixture(mixture: Mixture, cut: float | None, settings: SplitSettings) -> list[str]:
    doubts = []
    if mixture.bic_two >= mixture.bic_one:
        doubts.append(
            f"one Gaussian explains the cosines as well as two (BIC {mixture.bic_one:.1f} against {mixture.bic_two:.1f})"
        )
    if mixture.ashman_d < settings.min_separation:
        doubts.append(
            f"the components overlap: Ashman's D is {mixture.ashman_d:.2f}, asked for are {settings.min_separation:g} "
            f"(means {mixture.means[0]:.3f} / {mixture.means[1]:.3f}, standard deviations "
            f"{mixture.stds[0]:.3f} / {mixture.stds[1]:.3f})"
        )
    if cut is None:
        doubts.append(f"no cosine reaches the posterior {settings.threshold:g} (--threshold)")
    return doubts


def refusal(found: Decision, doubts: tuple[str, ...], settings: SplitSettings) -> str:
    """Return what is said where a split is not believed: the doubts, and what to do."""
    lines = "".join(f"\n  - {doubt}" for doubt in doubts)
    start = (
        f"the split of {found.num_scored} scored rows by rule {settings.rule!r} is not believed, so the round stays unsealed:"
        f"{lines}\n"
    )
    known = found.reliability
    if found.calibration is not None or (known is not None and not known.separates):
        start += (
            "The remedy is a checkpoint that tells such pairs apart: `pairsan rescore RUN --checkpoint BETTER`. The scores are "
            "kept. "
        )
        if known is not None and not known.separates:
            return start + (
                "Any share of this score is a share drawn at random; whoever wants it all the same says so by name, and the "
                "seal and the report repeat it: `pairsan split RUN --keep-share 0.3 --if-unseparable accept`."
            )
        return start + "With this one: `pairsan split RUN` with a larger --alpha, or a --keep-share that you choose."
    return start + (
        "The scores are kept. Decide with `pairsan split RUN` and one of: --rule calibrated, which measures how mismatched "
        "pairs score, --keep-share 0.3 (a share you choose), --min-cosine 0.2, --if-unseparable quantile --fallback-share 0.3, "
        "or --min-separation with a lower value. Where little is mismatched, two components describe the bulk and not the "
        "mismatches."
    )
