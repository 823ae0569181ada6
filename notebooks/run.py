"""Execute the notebooks and keep what they show: `python notebooks/run.py [NAME ...] [--work FOLDER]`.

Each runs from top to bottom in a folder of its own, so that no run of yours is read or touched; its outputs are then
written into the notebook without what changes by itself: times, widgets' numbers, progress bars, messages.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import tempfile
import time
from pathlib import Path
from queue import Empty

import nbformat
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
VIEW, STATE = (f"application/vnd.jupyter.widget-{what}+json" for what in ("view", "state"))
KEPT = ("image/png", "text/markdown", "text/html", "text/plain")  # of each output the first two of these that it has
MOST = 1_000_000  # bytes of a notebook


def notebooks(names: list[str] | tuple[str, ...] = ()) -> list[Path]:
    """Return the notebooks whose names begin with one of `names`; all without any."""
    return [path for path in sorted(HERE.glob("[0-9]*.ipynb")) if path.name.startswith(tuple(names) or "")]


# ------------------------------------------------------------------------------------------------------------- execute


def patient_manager():
    """Return a kernel manager whose clients look for a message every few seconds, whether they were woken or not.

    pyzmq's events can be missed under asyncio: a reply then lies there until the cell's whole time has passed.
    """
    from jupyter_client.asynchronous import AsyncKernelClient
    from jupyter_client.channels import AsyncZMQSocketChannel
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import Type

    class Channel(AsyncZMQSocketChannel):
        async def get_msg(self, timeout=None):
            deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
            while True:
                try:
                    return await super().get_msg(max(0.0, min(2.0, deadline - time.monotonic())))
                except Empty:
                    if time.monotonic() > deadline - 0.001:
                        raise

    class Client(AsyncKernelClient):
        shell_channel_class, iopub_channel_class = Type(Channel), Type(Channel)

    class Manager(AsyncKernelManager):
        client_factory = Type(Client)

    return Manager


def execute(notebook: NotebookNode, work: Path, seconds: float = 900) -> None:
    """Run all cells with a kernel that works in `work`, at most `seconds` for a cell; raises at a cell's error."""
    from nbclient import NotebookClient

    work.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        notebook,
        timeout=seconds,
        kernel_name="python3",
        kernel_manager_class=patient_manager(),
        resources={"metadata": {"path": str(work)}},
    )
    # This checkout comes first, whatever is installed, and wherever "." leads from the kernel's folder.
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    client.execute(env={**os.environ, "PYTHONPATH": paths})


# --------------------------------------------------------------------------------------------------------------- clean


def clean(notebook: NotebookNode) -> None:
    """Strip a notebook of what changes by itself: the same results then leave the same file, but for figures' pixels.

    A widget becomes the still picture that it has; figures are brought to 256 colours.
    """
    state = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    for cell in notebook.cells:
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k == "tags"})
        if cell.cell_type == "code":
            outputs = [o for output in cell.outputs for o in without_widgets(output, state)]
            cell.outputs = [cleaned(output) for output in merged(outputs)]


def without_widgets(output: NotebookNode, state: dict) -> list[NotebookNode]:
    """Return what an output shows without a kernel: of a widget without an HTML of its own, its inner outputs."""
    if VIEW not in output.get("data", {}):
        return [] if output.get("name") == "stderr" else [output]
    if "text/html" in output.data:
        return [output]
    return [nbformat.from_dict(inner) for inner in inner_outputs(output.data[VIEW]["model_id"], state)]


def inner_outputs(model: str, state: dict) -> list[dict]:
    """Return the outputs that a widget and its children hold, such as the figure under `interact`'s sliders."""
    held = state.get(model, {}).get("state", {})
    children = [child.removeprefix("IPY_MODEL_") for child in held.get("children", ())]
    return [*held.get("outputs", ()), *(output for child in children for output in inner_outputs(child, state))]


def merged(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join what a cell printed into one output: how it is cut depends on the moment."""
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    others = [output for output in outputs if output.output_type != "stream"]
    return [*([nbformat.v4.new_output("stream", name="stdout", text=text)] if text.strip() else []), *others]


def cleaned(output: NotebookNode) -> NotebookNode:
    """Keep the kinds of an output that a page on the web can show, a figure once, in 256 colours, with its words."""
    if "data" in output:
        # Of a figure the picture itself: not every page shows one that is inside of HTML.
        kept = [kind for kind in KEPT if kind in output.data and not ("html" in kind and "image/png" in output.data)][
            :2
        ]
        output.data = NotebookNode({kind: output.data[kind] for kind in kept})
        words = output.metadata.get("image/png", {}).get("alt")
        output.metadata = NotebookNode({"image/png": {"alt": words}} if words and "image/png" in kept else {})
        output.pop("transient", None)
        if "image/png" in output.data:
            output.data["image/png"] = fewer_colours(output.data["image/png"])
        output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", output.data.get("text/plain", ""))
    return output


def fewer_colours(png: str) -> str:
    """Bring a picture, in base64, to 256 colours: a third of the bytes, and no difference to the eye."""
    from PIL import Image

    buffer, picture = io.BytesIO(), Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == "P":  # cleaned before
        return png.strip()
    method = Image.Quantize.FASTOCTREE if "A" in picture.mode else Image.Quantize.MEDIANCUT  # one with transparency
    picture = picture if "A" in picture.mode else picture.convert("RGB")
    picture.quantize(256, method, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def kinds(notebook: NotebookNode) -> list[list[tuple[str, ...]]]:
    """Return for each code cell what kinds of outputs it has, of a cleaned notebook."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [[(o.output_type, *sorted(o.get("data", ()))) for o in cell.outputs] for cell in code]


def machine_paths(text: str) -> list[str]:
    """Find paths of the machine in a notebook's text; none may be committed."""
    roots = {"/home/", "/root/", "/tmp/", "/Users/", f"{Path.home()}/", f"{HERE.parent}/", tempfile.gettempdir() + "/"}
    return sorted(root for root in roots if root in text)


def main() -> None:
    """Execute the named notebooks, and write their outputs into them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 02 (default: all)")
    parser.add_argument("--work", help="folder for their runs, kept (default: a temporary one)")
    given = parser.parse_args()
    written = {}
    with tempfile.TemporaryDirectory() as temporary:
        for path in notebooks(given.names):
            started = time.monotonic()
            notebook = nbformat.read(path, as_version=4)
            execute(notebook, Path(given.work or temporary) / "notebooks")
            clean(notebook)
            text = written[path] = nbformat.writes(notebook) + "\n"
            print(f"{path.name}: {time.monotonic() - started:.0f} s, {len(text) // 1000} kB", flush=True)
            if found := machine_paths(text):
                raise SystemExit(f"{path.name} shows paths of this machine ({', '.join(found)}): nothing was written")
            if len(text.encode()) > MOST:
                raise SystemExit(f"{path.name} is larger than {MOST / 1e6:g} MB: nothing was written")
    for path, text in written.items():  # at the end: figures name the commit, and whether files differ from it
        path.write_text(text)


if __name__ == "__main__":
    main()
