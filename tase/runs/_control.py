"""Control of a training from outside, through a file in its folder; and the events that it leaves in the run.

control.json    the last request: {"id", "action": run | pause | stop, "set": {"guidance.tau_max": 0.4}}
events.jsonl    what was applied, with epoch and step; replayed on resume, so a steered run can be repeated
"""

from __future__ import annotations

import json
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

from ..config import Config, ConfigError, check, check_choice, override, unknown
from ..files import load_optional_json, read_lines, save_json, write_atomic

ACTIONS = ("run", "pause", "stop")


def request(folder: str | Path, config: Config, action: str = "run", set: dict[str, Any] | None = None) -> str:
    """Ask the training in `folder` to run on, pause or stop, and to take the fields `set` from its next refresh on.

    Returns the request's id. Raises ConfigError for an unknown action, and for fields that cannot be steered.
    """
    check_choice("action", action, ACTIONS)
    changes = dict(set or {})
    _check(config, [], changes)
    changes = {**_waiting(Path(folder)), **changes}
    _check(config, [], changes)
    id = uuid.uuid4().hex[:8]
    save_json(Path(folder) / "control.json", {"id": id, "action": action, "set": changes})
    return id


def _waiting(folder: Path) -> dict[str, Any]:
    """Fields of a request that no refresh has taken yet: a later request does not drop them."""
    before = load_optional_json(folder / "control.json")
    taken = {event.get("id") for event in read_lines(folder / "events.jsonl")}
    return {} if before.get("id") in taken else before.get("set", {})


def steered(config: Config, events: list[dict[str, Any]]) -> Config:
    """The configuration after the events, in their order; raises ConfigError where they make none."""
    changes: dict[str, Any] = {}
    for event in events:
        changes.update(event["set"])
    return override(config, changes)


def _check(config: Config, events: list[dict[str, Any]], changes: dict[str, Any]) -> None:
    """Raise ConfigError unless the fields can be steered, to these values, after the events."""
    steerable = [f"guidance.{name}" for name in config.guidance_class.steerable]
    check(bool(steerable) or not changes, "set", changes, f"empty: {config.method} has no guidance to steer")
    for name in changes:
        if name not in steerable:
            raise unknown("field to steer", name, steerable)
    steered(config, [*events, {"set": changes}])


class Control:
    """The training's side of it: looks at the request a few times a second at most, keeps the events."""

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config
        self.events = [e for e in read_lines(folder / "events.jsonl") if {"id", "epoch", "set"} <= e.keys()]
        self._looked, self._request, self._refused = 0.0, {}, object()

    def _now(self, patience: float = 0.0) -> dict[str, Any]:
        if time.monotonic() - self._looked >= patience:
            self._request = load_optional_json(self.folder / "control.json")
            self._looked = time.monotonic()
        return self._request

    def action(self) -> str:
        return self._now(patience=0.3).get("action", "run")

    def clear(self) -> None:
        """Forget an old request to pause or stop: a training that is started is meant to run."""
        request = self._now()
        if request.get("action", "run") != "run":
            save_json(self.folder / "control.json", {**request, "action": "run"})
            self._looked = 0.0

    def take(self, epoch: int, step: int) -> list[dict[str, Any]]:
        """Events that hold from this refresh on: those recorded for it, and a request that is new (and possible)."""
        request = self._now()
        event = {"id": request.get("id"), "epoch": epoch, "step": step, "set": request.get("set")}
        if event["set"] and event["id"] not in {e["id"] for e in self.events} and self._possible(event):
            self.events.append(event)
            lines = "".join(json.dumps(e) + "\n" for e in self.events)
            write_atomic(self.folder / "events.jsonl", lines.encode())
        return [event for event in self.events if event["epoch"] == epoch]

    def _possible(self, event: dict[str, Any]) -> bool:
        """Whether a request, which anyone may have written, makes a configuration; told once where it does not."""
        try:
            _check(self.config, self.events, dict(event["set"]))
            return True
        except (ConfigError, TypeError, ValueError) as error:
            if event["id"] != self._refused:
                warnings.warn(f"{self.folder / 'control.json'} is passed over: {error}", stacklevel=2)
            self._refused = event["id"]
            return False
