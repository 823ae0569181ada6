"""Sheets of images: which image stands where, and what is said beside it."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from tase import figures
from tase.pseudo_labels import centred


def shown(ax):
    return np.asarray(ax.images[0].get_array()) if ax.images else None


def test_each_row_has_the_images_of_one_cluster_nearest_first(trained):
    run = trained[2]
    labels, h = run.history.pseudo_label[-1], centred(torch.from_numpy(run.features()))
    sizes = np.bincount(labels)
    figure = figures.cluster_sheet(run, columns=6)
    rows = np.array(figure.axes).reshape(-1, 6)
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    expected = [*order[:3], *order[-5:]]
    assert [row[0].get_ylabel().split()[0] for row in rows] == [str(sizes[k]) for k in expected]
    for k, row in zip(expected, rows, strict=True):
        own = np.flatnonzero(labels == k)
        near = own[np.argsort(-(h[own] @ h[own].mean(0)).numpy(), kind="stable")]
        for place, ax in enumerate(row):
            if place < len(near):
                assert np.array_equal(shown(ax), run.images.images[near[place], 0].numpy())
            else:
                assert shown(ax) is None and not ax.axison


def test_clusters_can_be_chosen_and_an_empty_one_is_named(trained):
    run = trained[2]
    k = int(run.history.pseudo_label[-1][0])
    (label,) = [ax.get_ylabel() for ax in figures.cluster_sheet(run, [k], columns=1).axes]
    assert label == f"{(run.history.pseudo_label[-1] == k).sum()} images"
    with pytest.raises(ValueError, match="cluster 99 has no image"):
        figures.cluster_sheet(run, [99])


def test_thumbnails_wear_captions_and_colours():
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 1, 4, 4)
    axes = figures.thumbnails(images, ["a", "b", "c"], ["#ff0000", "#00ff00", "#0000ff"], columns=2).axes
    assert [ax.get_xlabel() for ax in axes[:3]] == ["a", "b", "c"] and not axes[3].axison
    assert [to_hex(ax.spines["left"].get_edgecolor()) for ax in axes[:3]] == ["#ff0000", "#00ff00", "#0000ff"]
    assert [int(shown(ax)[0, 0]) for ax in axes[:3]] == [0, 1, 2]
    with pytest.raises(ValueError, match="3 images but 1 captions"):
        figures.thumbnails(images, ["a"])
