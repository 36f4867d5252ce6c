"""A training loop of your own whose DataLoader does the matching, so that the step only mines and sums.

Data set and loop are plain torch. The collate function, the criterion and, here, the network are from fastssd.
"""

import torch
from torch.utils.data import DataLoader, Dataset

import fastssd
from fastssd.data import shapes_dataset
from fastssd.detection import TINYSSD


class Images(Dataset):
    """Samples as torchvision's detectors take them: image, and boxes in pixels with labels from 1."""

    def __init__(self, count: int) -> None:
        self.shapes = shapes_dataset(count)
        self.classes = self.shapes.class_names

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index):
        sample = self.shapes[index]
        image = torch.from_numpy(sample.image).permute(2, 0, 1) / 255  # [3, 256, 256]
        target = {"boxes": sample.boxes, "labels": sample.labels, "image_id": sample.image_id}
        return image, target


def main() -> None:
    data = Images(4)
    collate = fastssd.TargetCollate(TINYSSD.anchors(), boxes_in_pixels=True, num_classes=len(data.classes))
    loader = DataLoader(data, batch_size=2, num_workers=1, collate_fn=collate)
    model, criterion = fastssd.TinySSD(len(data.classes)), fastssd.Criterion()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    for batch in loader:
        images, targets, _ = batch.to(device)
        losses = criterion(*model(images), targets)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        print(f"loss {losses.total.item():.3f}, {losses.num_positives.item()} positive anchors, matched by the worker")


if __name__ == "__main__":
    main()
