"""Any other model of Hugging Face, through the chat template it ships.

The template is run by jinja in a sandbox. What a message says is replaced by private-use characters while it runs and put back afterwards,
so text never becomes a control token, whatever a template does with it.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from engine.rendering.messages import RenderError


def compile_template(source: str, *, mutable: bool = False) -> Any:
    """A chat template as Hugging Face runs it: `tojson` without escapes, `raise_exception`, `strftime_now`, loop controls.

    `mutable` lets a template change lists, which Hugging Face does not and a few templates want. Raises RenderError where jinja2 is not installed or the template is not valid.
    """
    try:
        import jinja2  # noqa: PLC0415
        from jinja2.ext import loopcontrols  # noqa: PLC0415
        from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment  # noqa: PLC0415
    except ImportError as error:
        raise RenderError("chat templates need jinja2: pip install 'callsheet[templates]'") from error

    def raise_exception(message: str) -> None:
        raise RenderError(f"the chat template refuses this conversation: {message}")

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: FBT001, FBT002 - the filter's own signature
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    kind = SandboxedEnvironment if mutable else ImmutableSandboxedEnvironment
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_tag()])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: dt.datetime.now(tz=dt.UTC).strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise RenderError(f"the chat template is not valid: {error}") from error


def _generation_tag() -> Any:
    """`{% generation %}` marks what is trained in some templates; it writes nothing."""
    from jinja2 import nodes  # noqa: PLC0415
    from jinja2.ext import Extension  # noqa: PLC0415

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja's own form

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return Generation
