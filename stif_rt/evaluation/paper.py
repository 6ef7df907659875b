"""One of the paper's tables, as it is run again: which row needs what, and our figures beside the paper's."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

from stif_rt.evaluation.methods import OURS, Method
from stif_rt.evaluation.protocol import TABLE_FRAMES, Result
from stif_rt.evaluation.published import MODELS, TABLES, WEIGHTS, Column, row_networks
from stif_rt.evaluation.tables import table


class Reproduction:
    """A table of the paper on one of its data sets, or on clips of one's own.

    Args:
        number: Of the table.
        dataset: Which of the data sets; None for clips of one's own, on which one column of each kind is filled.

    Raises:
        ValueError: For another number, or a data set that the table is not about.
    """

    def __init__(self, number: int, dataset: str | None) -> None:
        if number not in TABLES:
            raise ValueError(f"--table {number}: there are {', '.join(map(str, TABLES))}")
        self.number, self.dataset = number, dataset
        self.paper = TABLES[number]
        self.columns = self._columns()
        self.lengths = list(dict.fromkeys(column.length for column in self.columns))
        self.scales = list(dict.fromkeys(column.scale for column in self.columns))
        self.names: dict[str, str] = {}  # the method that runs a row, by the row's label
        self.others: dict[str, str] = {}  # labels of further rows, by method
        self.notes: dict[str, list[str]] = defaultdict(list)  # by the row's label
        self.failed: set[tuple[str, int, float]] = set()  # method, length, scale

    def _columns(self) -> list[Column]:
        if self.dataset is None:
            kinds: dict[tuple[int, float, str], Column] = {}
            for column in self.paper.columns:
                kinds.setdefault((column.length, column.scale, column.frames), column)
            return list(kinds.values())
        columns = [column for column in self.paper.columns if column.dataset == self.dataset]
        if not columns:
            known = ", ".join(dict.fromkeys(column.dataset for column in self.paper.columns))
            raise ValueError(f"--table {self.number} is about the data sets {known}, not {self.dataset}")
        return columns

    def add_methods(
        self,
        methods: Mapping[str, Method],
        files: Mapping[str, Path],
        model: Callable[[Path], Method],
        peer: Callable[[str], Method],
    ) -> dict[str, Method]:
        """The given methods and those of the rows. Rows that miss weights get a note.

        Args:
            methods: Of the user's own, and ours as ``OURS``.
            files: Weights by network.
            model: Loads a model of this package.
            peer: Finds a method that the paper compares with.
        """
        label = "this" if "stif" in files else "this (the bundled weights)"
        self.others = {name: label if name == OURS else name for name in methods}
        made = dict(methods)
        for row in self.paper.rows:
            method, needed = row_networks(row.method, files)
            missing = [f"--weights {name}=FILE ({WEIGHTS[name]})" for name in needed if name not in files]
            if missing:
                self.notes[row.label].append(f"waits for {' and '.join(missing)}")
                continue
            if method != row.method:
                self.notes[row.label].append(f"run as {method}; the paper does not say with which encoder")
            if method == "stif":
                method = OURS
            if method not in made:
                made[method] = model(files[method]) if method in MODELS else peer(method)
            self.others.pop(method, None)
            self.names[row.label] = method
        return made

    def numbers(self, length: int, scale: float) -> dict[str, list[int]]:
        """By method, the frames of a window that it is asked for: those of which the paper has a figure in its row."""
        numbers: dict[str, set[int]] = defaultdict(set)
        for column in self.columns:
            if (column.length, column.scale) == (length, scale):
                index = self.paper.columns.index(column)
                rows = [row for row in self.paper.rows if row.figures[index] and row.label in self.names]
                for name in [*self.others, *(self.names[row.label] for row in rows)]:
                    if (name, length, scale) not in self.failed:
                        numbers[name].update(TABLE_FRAMES[column.frames](length))
        return {name: sorted(wanted) for name, wanted in numbers.items()}

    def give_up(self, method: str, length: int, scale: float, reason: str) -> bool:
        """Notes that a row cannot be rendered; False where the method is no row."""
        labels = [label for label, name in self.names.items() if name == method]
        for label in labels:
            self.notes[label].append(f"cannot do time x{length - 1}, space x{scale:g}: {reason}")
        if labels:
            self.failed.add((method, length, scale))
        return bool(labels)

    def markdown(self, results: list[Result]) -> str:
        """The table, our figures before the paper's, then the notes."""
        rows = []
        for row in self.paper.rows:
            cells = []
            for column, figure in zip(self.paper.columns, row.figures, strict=True):
                if figure is None:
                    cells.append("-")
                else:
                    cell = self._cell(results, self.names.get(row.label), column)
                    cells.append(f"{cell} (paper: {figure.psnr:.2f} / {figure.ssim:.4f})".strip())
            rows.append([row.label, *cells])
        for name, label in self.others.items():
            rows.append([label, *(self._cell(results, name, column) for column in self.paper.columns)])
        source = f"the data set {self.dataset}" if self.dataset else "clips of one's own, not the paper's data sets"
        head = (
            f"## Table {self.number} of the paper: {self.paper.title}\n\nPSNR of the luma, dB / SSIM on {source}.\n\n"
        )
        text = head + table(["method", *(column.title for column in self.paper.columns)], rows)
        notes = [f"- {label}: {note}\n" for label, several in self.notes.items() for note in several]
        return "\n".join([text, *(["".join(notes)] if notes else [])])

    def _cell(self, results: list[Result], method: str | None, column: Column) -> str:
        if column not in self.columns:
            return ""
        if method is None:
            return "waits"
        if (method, column.length, column.scale) in self.failed:
            return "cannot"
        numbers = TABLE_FRAMES[column.frames](column.length)
        windows = [r for r in results if (r.length, r.scale) == (column.length, column.scale) and method in r.scores]
        scores = [score for result in windows for score in result.of(method, numbers)]
        similar = [score.ssim for score in scores if score.ssim is not None]
        return f"{fmean(score.luma for score in scores):.2f} / {fmean(similar):.4f}" if similar else "no windows"
