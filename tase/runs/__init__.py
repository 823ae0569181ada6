"""A run is a folder: everything drawn, tabulated or explored later is read from it.

    config.json        the configuration, its identity, the format's version
    environment.json   versions, device, threads, commit
    status.json        training, paused, stopped, failed or finished; epoch and step
    metrics.jsonl      one JSON object per epoch
    history/           one snapshot of every sample's tau, weight, pseudo-label, headness, loss per refresh
    control.json       a request from outside to pause, stop or steer; events.jsonl: what was applied, and when
    checkpoint.pt      all that is needed to resume exactly; checkpoint.previous.pt is the one before
    encoder.safetensors  the trained backbone's weights; encoder.json: how to build it (older runs: encoder.pt)
    results.json       what `evaluate` measured
    .lock              held by the process that trains in the folder

If a file is damaged, the checkpoint before is taken, a snapshot is left out, what can be made again is made again;
anything else is a RunError.
"""

from ..files import RunError
from .kept import keep_runs, kept_runs
from .run import PER_SAMPLE, PER_SNAPSHOT, RESULTS, RUN_FORMAT, History, Run, commit_text, has_tail, request, steered
from .writer import RunWriter, commit, environment, load_checkpoint, save_checkpoint
