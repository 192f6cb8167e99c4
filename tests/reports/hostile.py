"""Manifests whose every free text is an attack on the page that shows it."""

from __future__ import annotations

from html.parser import HTMLParser

from paramdelta_hub.package.manifest import Earlier, Manifest, Omission, TensorRecord

HOSTILE = (
    "<script>document.title='owned'</script>",
    "</title><script>document.title='owned'</script>",
    "</style><img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=document.title='owned'>",
    "' onmouseover='document.title=1' x='",
    "</text></svg><iframe src=//evil.example></iframe>",
    "<!-- ]]> --> <![CDATA[",
    "javascript:document.title='owned'",
    "url(https://evil.example/x) &lt;b&gt; &#60;",
    "א<b>ב</b>",
)


def hostile(manifest: Manifest, texts: tuple[str, ...] = HOSTILE) -> Manifest:
    """Return the manifest with these texts wherever a stranger has a choice, tensor names included."""
    text = "".join(texts)[:1000]
    tensors: list[TensorRecord] = []
    for index, tensor in enumerate(manifest.tensors):
        name = f"model.layers.{index}.{texts[index % len(texts)]}"
        tensors.append(tensor.model_copy(update={"name": name}))
    source = {"name": text, "commit": None}
    architecture = {"model_type": text, "classes": (text, *texts[:2])}
    return manifest.model_copy(
        update={
            "name": text,
            "license": text,
            "created_by": text,
            "relabeled_from": (Earlier(id="0" * 64, name=text, version="1.0.0"),),
            "base": manifest.base.model_copy(update=source),
            "post": manifest.post.model_copy(update=source),
            "architecture": manifest.architecture.model_copy(update=architecture),
            "omissions": (Omission(name=text, side="base", reason=text),),
            "tensors": tuple(tensors),
        }
    )


class Tags(HTMLParser):
    """What a browser would make of a page: the tags, their attributes, and addresses."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {key for key, _ in attrs}
        self.addresses += [value or "" for key, value in attrs if key in ("href", "src", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data
