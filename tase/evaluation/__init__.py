"""What a run has learnt: features of its images, probes on them, and the table that compares runs.

    results = evaluate(run, protocols=["linear", "few-shot", "lt-knn"])     # also written to the run's results.json
    print(format_table(compare([run, other])))                              # mean and 95 % interval over seeds

Every protocol is measured three times: on the trained backbone, on the raw pixels, and on the network as it was
initialised. Chance is no floor: raw pixels of digits are told apart at 96 %.
"""

from ._measure import FILES, Pixels, changes, evaluate, lacking, push_per_class
from ._sgd import sgd_probe
from ._table import compare, format_table, to_markdown

__all__ = [
    "FILES",
    "Pixels",
    "changes",
    "compare",
    "evaluate",
    "format_table",
    "lacking",
    "push_per_class",
    "sgd_probe",
    "to_markdown",
]
