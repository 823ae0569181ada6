"""Where images come from, the long-tailed training set, and its groups head, mid and tail.

images = load_images("folder", root="my_images", image_size=64)     # every training image of a source
splits = load_splits(preset("cifar10-lt"))                          # .train .probe .val .test: one ImageSet each
class_counts(preset("cifar10-lt"))                                  # what the rule decides, without the data
sources.py                                                          # how to add a data source

A source has training images, and some have an official test set. Of each class are held out, by the number of the
split: the test images (where there is no official test set), then the validation images. What is left is the pool. The
long tail is drawn from the pool by a rule (`data.rule`); the probe list, balanced, is another draw from the pool. Draws
for smaller counts are part of those for larger ones, and the probe list, validation and test are the same for all rules
of one split.

Published splits are read with rule `file`. Those of SDCLR (CIFAR-10, CIFAR-100, ImageNet-100) lie in the folder
`split/` of github.com/VITA-Group/SDCLR; for instance `cifar10_imbSub_with_subsets/split1_D_i.npy` holds 11,165 indices
into CIFAR-10's 50,000 training images, and `imagenet-100/imageNet_100_LT_train.txt` 12,205 lines.
github.com/MediaBrain-SJTU/BCL holds further copies for CIFAR-100. No rule that would draw the same images is published,
so they are read and not generated.
"""

from .folders import Listing, decode_folder, list_folder, read_image
from .sets import GROUPS, ImageSet, Mapped, Splits, batches, epoch_order, group_classes, place
from .sources import facts, is_fixed, load_images, missing_data, unreadable_files
from .splits import (
    check_few_shot,
    class_counts,
    few_shot_draws,
    listed_hash,
    load_splits,
    rank_in_class,
    rule_counts,
    tail_counts,
)
