"""DataLoader workers, forked and spawned, and the threads of a server give the results of one thread."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fastssd import ops

torch = pytest.importorskip("torch")


class Images(torch.utils.data.Dataset):
    """The results of operators on random inputs, seeded with the index."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(number)

        def boxes(count: int) -> Any:
            corner, size = torch.rand(2, count, 2, generator=generator)
            return torch.cat((corner, corner + 0.02 + size / 4), -1)

        anchors, scores = boxes(3000), torch.rand(3000, generator=generator)
        logits, deltas = torch.randn(3000, 4, generator=generator), torch.randn(3000, 4, generator=generator)
        targets = ops.assign_targets(anchors, boxes(9), torch.arange(1, 10) % 3 + 1)
        iou = ops.box_iou(anchors, boxes(500)).sum(0)  # enough for several threads
        keep = ops.nms(anchors, scores, 0.5)
        same = torch.equal(keep, torch.ops.fastssd.nms(anchors, scores, 0.5))
        found = ops.postprocess_detections(logits, deltas, anchors)
        return number, *targets, iou, keep[:50], same, *found


def assert_same(refs: list[Any], comps: list[Any]) -> None:
    assert len(refs) == len(comps)
    for ref, comp in zip(refs, comps, strict=True):
        assert ref[6]
        assert comp[6]
        for r, c in zip(ref, comp, strict=True):
            assert torch.equal(torch.as_tensor(r), torch.as_tensor(c))


@pytest.mark.parametrize(
    "how", ["spawn", pytest.param("fork", marks=pytest.mark.skipif("win32" in sys.platform, reason="no fork"))]
)
def test_workers_of_a_data_loader(how):
    refs = [Images()[number] for number in range(8)]  # starts the threads of the parent
    loader = torch.utils.data.DataLoader(Images(), batch_size=None, num_workers=2, multiprocessing_context=how)
    assert_same(refs, list(loader))


def test_threads_of_a_server():
    refs = [Images()[number] for number in range(8)]
    with ThreadPoolExecutor(8) as server:
        assert_same(refs * 4, list(server.map(Images().__getitem__, [*range(8)] * 4)))
