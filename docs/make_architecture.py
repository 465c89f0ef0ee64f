"""Draw docs/rooms.svg, the rooms of src/freerun and who imports whom, from the imports themselves.

Run: python docs/make_architecture.py          writes the picture
     python docs/make_architecture.py --check  exit code 1 where the picture is not what the imports say
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent
SOURCE = FOLDER.parent / "src" / "freerun"
PICTURE = FOLDER / "rooms.svg"

ROWS = (
    ("talks to people", ("report", "experiments", "cli", "hf", "lightning")),
    ("from files to results", ("recipes", "comparison")),
    ("training", ("tasks", "training", "integrations")),
    ("plug-ins", ("models", "data")),
    ("the literature", ("decoding", "generation", "methods", "checks", "diagnostics")),
    ("kernel", ("rollin", "transforms")),
    ("pure functions", ("schedules", "gates", "draws", "objectives", "targets", "regression", "metrics")),
    ("foundations", ("errors", "terminal", "arguments", "signals", "batch", "types", "keys", "distributions")),
)
WIDTH, BAND, HEIGHT, LEFT = 960, 92, 34, 150


def imports() -> dict[str, set[str]]:
    """Each room and the rooms that its files import."""
    found: dict[str, set[str]] = {room: set() for _, rooms in ROWS for room in rooms}
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room.startswith("__"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "freerun":
                rest = str(node.module).split(".")[1:2]
                found[room] |= set(rest or [each.name for each in node.names]) - {room}
    return {room: {each for each in others if each in found} for room, others in found.items()}


def essential(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no chain of other arrows replaces."""

    def reached(start: str, without: tuple[str, str]) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            room = waiting.pop()
            for other in graph[room]:
                if (room, other) != without and other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    arrows = [(room, other) for room, others in graph.items() for other in sorted(others)]
    return [arrow for arrow in arrows if arrow[1] not in reached(arrow[0], arrow)]


def box(row: int, column: int, count: int) -> tuple[float, float, float]:
    """Left, top and width of a room's box."""
    space = (WIDTH - LEFT - 16) / count
    width = min(space - 16, 150)
    return LEFT + space * column + (space - width) / 2, row * BAND + 40, width


def picture() -> str:
    """The drawing as SVG."""
    height = BAND * len(ROWS) + 24
    boxes = {
        room: box(row, column, len(rooms)) for row, (_, rooms) in enumerate(ROWS) for column, room in enumerate(rooms)
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        "<title>The rooms of freerun: an arrow leads from a room to one that it imports</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="#7a828c"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for row, (name, _) in enumerate(ROWS):
        fill = "#f5f6f8" if row % 2 else "#ffffff"
        parts.append(f'<rect y="{row * BAND + 12}" width="{WIDTH}" height="{BAND}" fill="{fill}"/>')
        parts.append(f'<text x="14" y="{row * BAND + 62}" fill="#5b6470">{escape(name)}</text>')
    for room, other in essential(imports()):
        (x, y, width), (left, top, wide) = boxes[room], boxes[other]
        if y == top:  # neighbours of one row
            side = (x, left + wide) if left < x else (x + width, left)
            bend = y + HEIGHT + 18
            start, end = x + width / 2, left + wide / 2
            far = abs(side[0] - side[1]) > 40
            line = (
                f"M{start:.0f} {y + HEIGHT}Q{(start + end) / 2:.0f} {bend + 14} {end:.0f} {top + HEIGHT}"
                if far
                else f"M{side[0]:.0f} {y + HEIGHT / 2:.0f}L{side[1]:.0f} {top + HEIGHT / 2:.0f}"
            )
        else:
            start, end = x + width / 2, left + wide / 2
            middle = (y + HEIGHT + top) / 2
            line = f"M{start:.0f} {y + HEIGHT}C{start:.0f} {middle:.0f} {end:.0f} {middle:.0f} {end:.0f} {top}"
        parts.append(f'<path d="{line}" fill="none" stroke="#7a828c" stroke-width="1.1" marker-end="url(#tip)"/>')
    for room, (x, y, width) in boxes.items():
        parts.append(
            f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{HEIGHT}" rx="6" fill="#ffffff" stroke="#3d6f9e" '
            f'stroke-width="1.4"/><text x="{x + width / 2:.0f}" y="{y + 22}" text-anchor="middle" fill="#1d2733">'
            f"{room}</text>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(arguments: list[str]) -> int:
    """Write the picture; with --check return 1 if it differs from the file."""
    drawn = picture()
    if "--check" in arguments:
        return int(not PICTURE.exists() or PICTURE.read_text("utf-8") != drawn)
    PICTURE.write_text(drawn, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
