"""One run, or several beside each other, as one HTML file that needs nothing but itself."""

import base64
import json
import mimetypes
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup

import rn50
from rn50.analyze import analysis, earlier
from rn50.observe.compare import Entry
from rn50.observe.figures import FIGURES
from rn50.observe.history import History
from rn50.report import analysed, facts
from rn50.report.charts import Chart, chart
from rn50.report.command import differences, repeat
from rn50.train.folder import fingerprint_of

_ALTS = {
    "loss": "Loss in training and validation over the epochs",
    "accuracy": "Top-1 and top-5 accuracy in training and validation over the epochs",
    "lr": "Learning rate and image size over the epochs",
    "throughput": "Images per second, and the share of time spent waiting for data",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A section of the analysis on the page."""

    anchor: str
    title: str
    html: Markup


def run_page(
    run_dir: Path,
    problems: Sequence[str] = (),
    price_per_hour: float = 0.0,
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Return the page of one run, of as much as its folder holds.

    Args:
        run_dir: The folder of the run, finished, running or crashed.
        problems: What else to name as missing.
        price_per_hour: Dollars an hour, where the record tells no price; 0: unknown.
        say: Told all that the page names as missing.

    Raises:
        UsageError: It is no run's folder.
    """
    history = History.read(run_dir)
    entry = Entry(run_dir.resolve().name, history, price_per_hour)
    run, folder = facts.settings(history), analysis.default_folder(run_dir)
    found = earlier.sections(folder)
    others, left_out = analysed.results(found, history, _fingerprint(run_dir, history))
    missing = [*history.problems, *problems, *analysed.problems(found, run_dir), *left_out]
    for problem in missing:
        say(problem)
    return render(
        "run.html",
        title=history.title,
        state=f"{entry.label} · {history.state}",
        tiles=facts.tiles(entry),
        problems=missing,
        what=facts.what_was_run(history, run),
        where=facts.where(entry),
        results=[*facts.results(history, run), *others],
        claims=facts.claims(history, run),
        charts=charts(history),
        sample=_sample(history, run_dir),
        events=facts.events(history),
        analysis=parts_of(folder),
        command=repeat(run),
        changed=differences(run),
        config=json.dumps(history.settings, indent=2) if history.settings else "",
    )


def charts(history: History) -> list[Chart]:
    """Return the curves of a run; none of one that recorded nothing."""
    if not history.windows and not history.epochs:
        return []
    return [chart(name, draw(history), _ALTS.get(name, name)) for name, draw in FIGURES.items()]


def parts_of(folder: Path) -> list[Part]:
    """Return what ``rn50 analyze`` wrote, with its pictures in it; nothing where it did not."""
    path = folder / analysis.MARKDOWN
    if not path.exists():
        return []
    _, *sections = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    parts = []
    for number, section in enumerate(sections):
        title, _, text = section.partition("\n")
        html = Markup(_markdown(folder).render(text))
        parts.append(Part(anchor=f"analysis-{number}", title=title.strip(), html=html))
    return parts


def _markdown(folder: Path) -> MarkdownIt:
    """Return a renderer that puts the pictures of a folder into the text, and lets no HTML in."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(
        self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
    ) -> str:
        source = str(tokens[index].attrs.get("src", ""))
        alt = Markup.escape(self.renderInlineAsText(tokens[index].children, options, env))
        inlined = data_url(folder / source) if source == Path(source).name else ""
        return f'<img src="{inlined}" alt="{alt}">' if inlined else str(alt)

    def link(
        self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
    ) -> str:
        return f'<a rel="noreferrer" href="{Markup.escape(tokens[index].attrs.get("href", ""))}">'

    markdown.add_render_rule("image", image)
    markdown.add_render_rule("link_open", link)
    markdown.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return markdown


def data_url(path: Path) -> str:
    """Return a picture as a URL that holds it; empty where there is none."""
    if not path.is_file():
        return ""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _sample(history: History, run_dir: Path) -> str:
    names = [str(record["file"]) for record in history.images]
    return data_url(run_dir / names[0]) if names and names[0] == Path(names[0]).name else ""


def render(template: str, **values: Any) -> str:
    """Return a page of a template of this package, with its style and script in it."""
    loader = jinja2.PackageLoader("rn50.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    style, script = (
        Markup(environment.get_template(name).render()) for name in ("page.css", "page.js")
    )
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    shared = {"style": style, "script": script, "version": rn50.__version__, "date": made}
    return environment.get_template(template).render(**shared, **values)


def _fingerprint(run_dir: Path, history: History) -> str | None:
    told = (history.latest_facts or {}).get("fingerprint")
    return str(told) if told else fingerprint_of(run_dir)
