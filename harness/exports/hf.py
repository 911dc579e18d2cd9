"""A data set of Hugging Face: one Parquet file, a card and a Croissant description. Nothing is uploaded."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from harness.exports.base import Format, Source, installed, picture

PARQUET = "data/train-00000-of-00001.parquet"


class HuggingFace(Format):
    """``data/*.parquet`` with the columns image, label, soft_label and pixels, ``README.md``, ``croissant.json``.

    ``image`` is an 8-bit picture to look at. ``pixels`` are the preprocessed ones that networks are trained on, to the
    bit, as one list in the order channel, row, column. ``set.safetensors`` is the set itself, with its preprocessing.
    """

    meaning = "a Hugging Face data set: Parquet, card, Croissant (extra: hub)"

    def write(self, source: Source, folder: Path) -> list[str]:
        installed("pyarrow", "hub")
        (folder / "data").mkdir()
        _write_parquet(source, folder / PARQUET)
        shutil.copyfile(source.path, folder / "set.safetensors")
        (folder / "README.md").write_text(_card(source), encoding="utf-8")
        digest = hashlib.sha256((folder / PARQUET).read_bytes()).hexdigest()
        text = json.dumps(_croissant(source, digest), indent=2, ensure_ascii=False)
        (folder / "croissant.json").write_text(text + "\n", encoding="utf-8")
        return [
            "Complete README.md and croissant.json: the licence, the limits and the use of the data.",
            "Then: hf upload USER/NAME FOLDER --repo-type dataset",
        ]


def _write_parquet(source: Source, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, labels = source.synthetic.images, source.synthetic.labels
    names = source.distilled.class_names
    columns: dict[str, Any] = {}
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
    pictures = []
    for image in source.natural:
        buffer = io.BytesIO()
        picture(image).save(buffer, format="PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    columns["image"] = pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    columns["label"] = pa.array(source.classes.tolist(), pa.int64())
    for name, tensor in (("soft_label", labels), ("pixels", images)):
        kind = "float64" if tensor.dtype == torch.float64 else "float32"
        flat = tensor.to(getattr(torch, kind)).flatten(1).contiguous()
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.flatten().numpy()), flat.shape[1])
        # Its name in every version of the package datasets; version 4 calls it List.
        features[name] = {"feature": {"dtype": kind, "_type": "Value"}, "length": flat.shape[1], "_type": "Sequence"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def _facts(source: Source) -> dict[str, str]:
    """Facts for the card, in words."""
    own, synthetic, known = source.distilled, source.synthetic, source.distilled.distillation
    facts = {
        name: str(known[name]) for name in ("method", "dataset", "ipc", "seed", "steps") if known.get(name) is not None
    }
    if source.written is not None:
        facts["distilled with"] = f"torch {source.written['provenance'].get('torch')}"
    facts["network"] = f"{own.network.name}, width {own.network.width}, norm {own.network.norm}"
    facts["preprocessing"] = own.preprocess.name
    facts["shape of pixels"] = "×".join(map(str, synthetic.images.shape[1:])) + " (channels, height, width)"
    facts["labels"] = f"{synthetic.label_space}, {synthetic.labels.shape[1]} classes"
    if synthetic.lr is not None:
        facts["learned step size"] = ", ".join(f"{value:.6g}" for value in synthetic.lr.flatten().tolist())
    if own.factor > 1:
        facts["decoded"] = f"{len(own.images)} stored images, each cut into {own.factor**2}"
    return facts


def _card(source: Source) -> str:
    rows = "\n".join(f"| {name} | {value.replace('|', ' ')} |" for name, value in _facts(source).items())
    shape = tuple(source.synthetic.images.shape[1:])
    return f"""---
pretty_name: {json.dumps(source.name, ensure_ascii=False)}
license: unknown
task_categories:
- image-classification
tags:
- dataset-distillation
- synthetic
configs:
- config_name: default
  data_files:
  - split: train
    path: {PARQUET}
---

# {source.name}

A distilled data set: {len(source.synthetic.images)} synthetic images to train networks on in the place of real ones.

| | |
|:--|:--|
{rows}

`image` is for the eye: 8 bits, and {source.outside:.1%} of its pixels are clipped. Train on `pixels` and `soft_label`:

```python
import numpy as np
from datasets import load_dataset
rows = load_dataset("USER/NAME", split="train").with_format("numpy")
images, labels = np.stack(rows["pixels"]).reshape(-1, {", ".join(map(str, shape))}), np.stack(rows["soft_label"])
```

Every real image must go through the preprocessing of the set, which `set.safetensors` holds:

```python
from harness.records.artifact import load
transform = load("set.safetensors").transform
```
"""


TODO = "To be filled in by the publisher."


def _croissant(source: Source, sha256: str) -> dict[str, Any]:
    """The description of the files by Croissant 1.0 (docs.mlcommons.org/croissant)."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.name)
    kinds = {
        "image": ("sc:ImageObject", {"extract": {"column": "image"}, "transform": {"jsonPath": "bytes"}}),
        "label": ("sc:Integer", {"extract": {"column": "label"}}),
        "soft_label": ("sc:Float", {"extract": {"column": "soft_label"}}),
        "pixels": ("sc:Float", {"extract": {"column": "pixels"}}),
    }
    meanings = {
        "image": "8-bit picture, clipped to [0, 1], to look at",
        "label": "class of the image",
        "soft_label": f"label of every class, {source.synthetic.label_space}",
        "pixels": f"preprocessed pixels, flat, of shape {list(source.synthetic.images.shape[1:])}",
    }
    fields = [
        {
            **{"@type": "cr:Field", "@id": f"default/{field}", "description": meanings[field], "dataType": kind},
            "source": {"fileObject": {"@id": "parquet"}, **taken},
            **({"repeated": True} if kind == "sc:Float" else {}),
        }
        for field, (kind, taken) in kinds.items()
    ]
    rai = ("dataLimitations", "dataBiases", "personalSensitiveInformation", "dataUseCases", "dataSocialImpact")
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": name,
        "description": f"A distilled data set of {len(source.synthetic.images)} synthetic images. {TODO}",
        "license": TODO,
        "url": TODO,
        "version": "1.0.0",
        "creator": {"@type": "sc:Organization", "name": TODO},
        "citeAs": TODO,
        **{f"rai:{each}": TODO for each in rai},
        "distribution": [
            {
                **{"@type": "cr:FileObject", "@id": "parquet", "name": "parquet", "contentUrl": PARQUET},
                **{"encodingFormat": "application/x-parquet", "sha256": sha256},
            }
        ],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "default", "name": "default", "field": fields}],
    }


_CONTEXT: dict[str, Any] = {
    **{"@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/"},
    **{"cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/"},
    **{"dct": "http://purl.org/dc/terms/", "conformsTo": "dct:conformsTo", "citeAs": "cr:citeAs"},
    **{name: f"cr:{name}" for name in ("arrayShape", "column", "equivalentProperty", "extract", "field", "fileObject")},
    **{name: f"cr:{name}" for name in ("fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset")},
    **{name: f"cr:{name}" for name in ("jsonPath", "key", "md5", "parentField", "path", "recordSet", "references")},
    **{name: f"cr:{name}" for name in ("regex", "repeated", "replace", "samplingRate", "separator", "source")},
    **{name: f"cr:{name}" for name in ("subField", "transform")},
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}
