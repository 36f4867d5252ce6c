"""Detect without torch: export a detector to ONNX once, and run it in a process that never imports torch.

    python examples/onnx_detect.py [CHECKPOINT [IMAGE...]]

Without a checkpoint, a small network is first trained on one generated image, for a few seconds.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

missing = [name for name in ("torch", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
if missing:
    print("skipped: needs", ", ".join(missing))
    sys.exit()

import torch  # noqa: E402
from PIL import Image  # noqa: E402

import fastssd  # noqa: E402
from fastssd.data import shapes_dataset  # noqa: E402
from fastssd.deploy.onnx_export import export_onnx  # noqa: E402

DETECT = """
import sys
import fastssd

detector = fastssd.Detector(sys.argv[1])
for image in sys.argv[2:]:
    for name, score, box in detector(image):
        print(f"{name} {score:.2f} at", *(round(x) for x in box))
print("torch is", "loaded" if "torch" in sys.modules else "not loaded")
"""


def train_on_one(image: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor, classes: int) -> fastssd.TinySSD:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with so little work, several threads would only wait for each other
    model, criterion = fastssd.TinySSD(classes), fastssd.Criterion()
    targets = criterion.match_targets(model.anchors, [boxes], [labels])
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(30):
        loss = criterion(*model(image), targets).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


folder = Path(tempfile.mkdtemp())
if len(sys.argv) > 1:
    model, made = fastssd.load_checkpoint(sys.argv[1])
    names, paths = made.class_names, sys.argv[2:]
else:
    data = shapes_dataset(1)
    names, sample = data.class_names, data[0]
    image = torch.from_numpy(sample.image).permute(2, 0, 1)[None] / 255
    model = train_on_one(image, torch.from_numpy(sample.boxes) / 256, torch.from_numpy(sample.labels), len(names))
    paths = [str(folder / "image.png")]
    Image.fromarray(sample.image).save(paths[0])
    print("to be found:", *(names[label - 1] for label in sample.labels))

exported = export_onnx(model, folder / "model.onnx", class_names=names)
print(f"{exported.size / 1e6:.1f} MB, equal to torch within {exported.difference:.0e}")
subprocess.run([sys.executable, "-c", DETECT, exported.path, *paths], check=True)
