"""The state of a run as metrics, for the textfile collector of Prometheus' node exporter."""

from typing import Any

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

_PER_ROUND = {
    "safe_share": ("pairsan_safe_share", "safe rows among the scored ones, 0 to 1"),
    "cut": ("pairsan_cut_cosine", "least cosine of a safe row"),
}
_TRAINING = {
    "clip_loss": ("pairsan_clip_loss", "mean CLIP loss of the last pass on this round"),
    "unimodal_loss": ("pairsan_unimodal_loss", "mean unimodal loss of the last pass on this round"),
    "hours": ("pairsan_training_hours", "time of all training passes on this round"),
}


def write(report: dict[str, Any], path: str) -> None:
    """Write what `pipeline.queries.status.of_run` returned as metrics, whole or not at all.

    Args:
        report: The state of a run.
        path: Local file; the collector wants it to end in `.prom`.
    """
    registry = CollectorRegistry()
    run = report["run"]
    rows = Gauge("pairsan_rows", "rows of a sealed round by label", ["run", "round", "label"], registry=registry)
    changed = Gauge(
        "pairsan_labels_changed", "rows whose label changed since the sealed round before", ["run", "round"], registry=registry
    )
    apart = Gauge(
        "pairsan_ashman_d", "distance of the mixture's means in standard deviations", ["run", "round"], registry=registry
    )
    leak = Gauge("pairsan_canary_leak", "share of canaries called safe", ["run", "round", "kind"], registry=registry)
    sealed = Gauge("pairsan_sealed_rounds", "rounds that are sealed", ["run"], registry=registry)
    failed = Gauge("pairsan_failed_shards", "shards that failed in a round that is not sealed", ["run"], registry=registry)
    gauges = {
        key: Gauge(name, text, ["run", "round"], registry=registry) for key, (name, text) in {**_PER_ROUND, **_TRAINING}.items()
    }
    done = [entry for entry in report["rounds"] if entry["state"] == "sealed"]
    sealed.labels(run).set(len(done))
    failed.labels(run).set(sum(len(entry["failed"]) for entry in report["rounds"]))
    for entry in done:
        place = (run, str(entry["round"]))
        for label, num in entry["counts"]["labels"].items():
            rows.labels(*place, label).set(num)
        for kind, found in (entry["canaries"] or {}).items():
            leak.labels(*place, kind).set(found["share"])
        if entry["changes"]:
            changed.labels(*place).set(sum(entry["changes"]["labels"].values()))
        if entry["mixture"]:
            apart.labels(*place).set(entry["mixture"]["ashman_d"])
        values = {**{key: entry[key] for key in _PER_ROUND}, **(entry["training"] or {})}
        for key, gauge in gauges.items():
            if values.get(key) is not None:
                gauge.labels(*place).set(values[key])
    write_to_textfile(path, registry)
