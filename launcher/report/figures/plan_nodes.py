"""What a plan runs where: the stages of a bundle in a row, and the nodes with their bundles."""

from __future__ import annotations

from collections.abc import Iterator

from bundlerun.launcher.console import noun_for
from bundlerun.launcher.planning.forecast_words import bytes_text, seconds_text
from bundlerun.launcher.planning.picture.nodes import CellBox, Message, NodeBox, Nodes, StageBox
from bundlerun.launcher.report.figures.look import Look
from bundlerun.launcher.report.figures.sheet import (
    Box,
    Sheet,
    Stroke,
    Words,
    fitting,
    width_of,
)

_BETWEEN = "#d55e00"
"""What goes from node to node."""
_FACE = "#e8f0f8"
_MASTER = "#b9d3ea"
_NODE = "#fafafa"
_MOST_IN_ROW = 8
_MOST_CHUNKS = 32
_MOST_COLUMNS = 16
_TITLE_POINTS = 9.5
_POINTS = 7.5
_SMALL = 6.5
_LINE = 0.15
"""Height of a line of words."""


def lay_out(nodes: Nodes, look: Look, width: float) -> tuple[Sheet, float]:
    """The sheet, and how high it is, inches.

    Args:
        nodes: what to show.
        look: for its colours.
        width: of the sheet, inches.
    """
    layout = _Layout(nodes, look, width)
    layout.bundle()
    layout.nodes()
    return layout.sheet, layout.y


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun_for(number, noun)}"


class _Layout:
    def __init__(self, nodes: Nodes, look: Look, width: float) -> None:
        self.sheet, self.y = Sheet(), 0.0
        self._nodes, self._width = nodes, width
        self._ink, self._quiet = look.named("ink"), look.named("quiet")

    def _words(
        self, x: float, text: str, points: float = _POINTS, *, is_quiet: bool = True
    ) -> None:
        color = self._quiet if is_quiet else self._ink
        self.sheet.words.append(Words(x, self.y + _LINE / 2, text, points, color))
        self.y += _LINE

    def _title(self, text: str) -> None:
        middle = self.y + 0.1
        self.sheet.words.append(Words(0, middle, text, _TITLE_POINTS, self._ink, is_bold=True))
        self.y += 0.28

    # --- the stages of a bundle

    def bundle(self) -> None:
        """Chunk after chunk, with what is sent between them."""
        nodes = self._nodes
        num_chunks = nodes.chunks.num_chunks
        stages = _count(nodes.chunks.num_stages, "stage")
        per_stage = nodes.chunks.per_stage
        more = f", {per_stage} chunks of the model each" if per_stage > 1 else ""
        self._title(f"A bundle: {stages}{more}")
        unit = "bytes are not known without a profile of the model"
        if nodes.gradient_bytes:
            unit = "bytes of a step: in a stage, its gradients"
            unit += "; beside, activations forth and gradients back" if num_chunks > 1 else ""
        self.y -= 0.06
        self._words(0, unit)
        self.y += 0.05
        in_row = min(num_chunks, _MOST_IN_ROW)
        pitch = min(self._width / in_row, 2.6)
        shown = min(num_chunks, _MOST_CHUNKS)
        for first in range(0, shown, in_row):
            for place, chunk in enumerate(range(first, min(first + in_row, shown))):
                self._chunk(place * pitch, chunk, pitch)
            self.y += 0.78
        if shown < num_chunks:
            self._words(0, f"and {num_chunks - shown} more")
        self.y += 0.08

    def _chunk(self, x: float, chunk: int, pitch: float) -> None:
        nodes = self._nodes
        stage = nodes.chunks.stage_of(chunk)
        box_width = max(0.66, pitch * 0.52)
        box = Box(x, self.y + 0.08, box_width, 0.56, _FACE, self._ink)
        self.sheet.boxes.append(box)
        lines = [f"stage {stage}"]
        if nodes.chunks.per_stage > 1:
            lines.append(f"chunk {nodes.chunks.own_of(chunk)}")
        elif nodes.widths[stage] > 1:
            lines.append(f"{nodes.widths[stage]} devices")
        if nodes.gradient_bytes and chunk < nodes.chunks.num_stages:
            lines.append(bytes_text(nodes.gradient_bytes[stage]))
        top = box.top + box.height / 2 - _LINE * (len(lines) - 1) / 2
        for number, line in enumerate(lines):
            self.sheet.words.append(
                Words(
                    x + box_width / 2, top + number * _LINE, line, _SMALL if number else _POINTS,
                    self._quiet if number else self._ink, "center", not number,
                )
            )  # fmt: skip
        if chunk < len(nodes.messages):
            self._message(x + box_width, box, pitch - box_width, nodes.messages[chunk])

    def _message(self, x: float, box: Box, width: float, message: Message) -> None:
        color = _BETWEEN if message.is_between else self._ink
        margin = 0.05
        middle = box.top + box.height / 2
        for y, begin, end in (
            (middle - 0.06, x + margin, x + width - margin),
            (middle + 0.06, x + width - margin, x + margin),
        ):
            self.sheet.strokes.append(
                Stroke(begin, y, end, y, color, is_dashed=message.is_between, has_head=True)
            )
        texts = (
            (message.forward_bytes, middle - 0.17),
            (message.backward_bytes, middle + 0.17),
        )
        for num_bytes, y in texts:
            if num_bytes is not None:
                self.sheet.words.append(
                    Words(x + width / 2, y, bytes_text(num_bytes), _SMALL, self._ink, "center")
                )
        if message.cut:
            text = fitting(message.cut, _SMALL, width + 0.25)
            self.sheet.words.append(
                Words(x + width / 2, box.top - 0.03, text, _SMALL, self._quiet, "center")
            )

    # --- nodes

    def nodes(self) -> None:
        """Cells side by side, and the exchange below them."""
        nodes = self._nodes
        of = ""
        if len({box.kind.devices for cell in nodes.cells for box in cell.nodes}) == 1:
            of = f" of {_count(nodes.cells[0].nodes[0].kind.devices, 'device')}"
        self._title(f"{_count(nodes.num_nodes, 'node')}{of}, {_count(nodes.num_bundles, 'bundle')}")
        self.y -= 0.02
        for row in self._rows_of_cells():
            bottom = self.y
            ends: list[tuple[float, float]] = []
            x = 0.0
            for cell in row:
                low, feet_at = self._cell(x, cell)
                bottom = max(bottom, low)
                ends += feet_at
                x += self._cell_width(cell) + 0.35
            self.y = bottom
            if nodes.has_exchange:
                self._bus(ends)
            self.y += 0.14
        if nodes.num_more_cells:
            self._words(0, f"and {_count(nodes.num_more_cells, 'more kind')} of nodes and bundles")
        for line in self._legend():
            self._words(0, line)
        self.y += 0.05

    def _legend(self) -> Iterator[str]:
        nodes = self._nodes
        if any(message.is_between for message in nodes.messages):
            yield "dashed: from node to node, for some bundle"
        if nodes.has_exchange:
            sums = ""
            if nodes.gradient_bytes:
                each = [bytes_text(n) for n in nodes.gradient_bytes]
                more = ", ..." if len(each) > 8 else ""
                listed = f"{', '.join(each[:8])}{more}"
                sums = f", {f'{each[0]} each' if len(set(each)) == 1 else listed}"
            what = f"a sum for each stage among the local masters (*) of all nodes{sums}"
            yield f"exchange: {what}"
        elif nodes.has_sums:
            yield "* local master, where the sums of gradients of its stage meet"
        if nodes.num_without:
            yield f"{_count(nodes.num_without, 'node')} with no part in any bundle"
        parts = []
        if nodes.egress_bytes:
            parts.append(f"a node sends {bytes_text(nodes.egress_bytes)} a step at most")
        if nodes.between and nodes.num_nodes > 1:
            latency = nodes.between.latency_s
            parts.append(
                f"between nodes {nodes.between.bytes_per_s * 8 / 1e9:,.3g} Gbit/s"
                + (f", {seconds_text(latency)}" if latency else "")
            )
        if parts:
            yield "; ".join(parts)

    def _rows_of_cells(self) -> Iterator[list[CellBox]]:
        row: list[CellBox] = []
        used = 0.0
        for cell in self._nodes.cells:
            width = self._cell_width(cell)
            if row and used + width > self._width:
                yield row
                row, used = [], 0.0
            row.append(cell)
            used += width + 0.35
        if row:
            yield row

    def _cell_width(self, cell: CellBox) -> float:
        nodes = sum(_node_width(node) for node in cell.nodes) + 0.3 * (len(cell.nodes) - 1)
        more = 0.8 if cell.num_nodes > len(cell.nodes) else 0.0
        times = width_of(_times(cell), 10) + 0.12 if cell.count > 1 else 0.0
        return nodes + more + times

    def _cell(self, x: float, cell: CellBox) -> tuple[float, list[tuple[float, float]]]:
        """Draws it at `x`; how far down it reaches, and where each node has its foot."""
        top = self.y
        numbers = sorted({number for node in cell.nodes for number in node.rows})[:8]
        feet_at = []
        bottom = top
        # Where a bundle was last, for its line to the next node.
        ends: dict[int, tuple[float, float]] = {}
        for node in cell.nodes:
            width = _node_width(node)
            own = [number for number in numbers if number in node.rows]
            rows_height = 0.34 * (len(numbers) if len(cell.nodes) > 1 else len(own))
            feet = list(_feet(node, len(own)))
            height = 0.26 + rows_height + _LINE * len(feet) + 0.06
            if cell.count > 1:
                shadow = Box(x + 0.06, top + 0.06, width, height, _NODE, self._quiet, 0)
                self.sheet.boxes.append(shadow)
            self.sheet.boxes.append(Box(x, top, width, height, _NODE, self._quiet))
            self.sheet.words.append(
                Words(x + 0.08, top + 0.13, fitting(_node_name(node), _POINTS, width - 0.1),
                      _POINTS, self._ink)
            )  # fmt: skip
            for number in own:
                place = numbers.index(number) if len(cell.nodes) > 1 else own.index(number)
                y = top + 0.26 + 0.34 * place
                ends[number] = self._row(x + 0.08, y, node.rows[number], ends.get(number))
            for place, text in enumerate(feet):
                y = top + 0.26 + rows_height + _LINE * (place + 0.5)
                self.sheet.words.append(Words(x + 0.08, y, text, _SMALL, self._quiet))
            bottom = max(bottom, top + height + (0.06 if cell.count > 1 else 0))
            feet_at.append((x + width / 2, top + height))
            x += width + 0.3
        if cell.num_nodes > len(cell.nodes):
            text = f"+ {cell.num_nodes - len(cell.nodes)} nodes"
            self.sheet.words.append(Words(x - 0.15, top + 0.3, text, _POINTS, self._quiet))
            x += 0.8
        if cell.count > 1:
            text = _times(cell)
            self.sheet.words.append(Words(x - 0.15, top + 0.16, text, 10, self._ink, is_bold=True))
        return bottom, feet_at

    def _row(
        self, x: float, y: float, boxes: tuple[StageBox, ...], end: tuple[float, float] | None
    ) -> tuple[float, float]:
        """Draws what a node has of a bundle; where its last stage ends."""
        shown = boxes[:_MOST_COLUMNS]
        for box in shown:
            width, middle = _box_width(box), y + 0.14
            text = _box_text(box) if self._nodes.has_sums else _box_text(box).rstrip("*")
            if end is not None:
                # From the last stage here, or on the node before.
                is_between = x - end[0] > 0.2
                color = _BETWEEN if is_between else self._ink
                self.sheet.strokes.append(
                    Stroke(end[0], end[1], x, middle, color, is_dashed=is_between)
                )
            face = _MASTER if box.is_master and self._nodes.has_sums else _FACE
            self.sheet.boxes.append(Box(x, y, width, 0.28, face, self._ink, 2))
            self.sheet.words.append(Words(x + width / 2, middle, text, _SMALL, self._ink, "center"))
            end = x + width, middle
            x += width + 0.12
        if len(boxes) > len(shown):
            text = f"+ {len(boxes) - len(shown)}"
            self.sheet.words.append(Words(x, y + 0.14, text, _SMALL, self._quiet))
        assert end is not None
        return end

    def _bus(self, ends: list[tuple[float, float]]) -> None:
        """The exchange, below the nodes of a row."""
        y = self.y + 0.16
        for x, foot in ends:
            self.sheet.strokes.append(Stroke(x, foot, x, y, _BETWEEN, 1.6))
        first = ends[0][0]
        right = max(ends[-1][0], first + 0.6)
        self.sheet.strokes.append(Stroke(first, y, right, y, _BETWEEN, 1.6))
        self.sheet.words.append(Words(right + 0.08, y, "exchange", _SMALL, _BETWEEN))
        self.y = y


def _times(cell: CellBox) -> str:
    return f"\N{MULTIPLICATION SIGN} {cell.count:,}"


def _box_text(box: StageBox) -> str:
    times = f"\N{MULTIPLICATION SIGN}{box.count}" if box.count > 1 else ""
    return f"s{box.stage}{times}{'*' if box.is_master else ''}"


def _box_width(box: StageBox) -> float:
    return max(0.3, width_of(_box_text(box), _SMALL) + 0.1)


def _node_name(node: NodeBox) -> str:
    speed = f", speed {node.kind.speed:.3g}" if node.kind.speed != 1 else ""
    return f"{node.kind.name}{speed}"


def _feet(node: NodeBox, num_shown: int) -> Iterator[str]:
    if node.num_bundles > num_shown:
        yield f"+ {_count(node.num_bundles - num_shown, 'more bundle')}"
    if node.num_idle:
        yield f"{_count(node.num_idle, 'device')} idle"


def _node_width(node: NodeBox) -> float:
    most = 0.0
    for boxes in node.rows.values():
        shown = boxes[:_MOST_COLUMNS]
        more = 0.35 if len(boxes) > len(shown) else 0.0
        most = max(most, sum(_box_width(box) for box in shown) + 0.12 * (len(shown) - 1) + more)
    words = [_node_name(node), *_feet(node, len(node.rows))]
    widest = max(width_of(text, _POINTS) for text in words)
    return max(most, min(widest, 2.2)) + 0.16
