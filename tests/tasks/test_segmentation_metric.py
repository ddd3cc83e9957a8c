import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastav.metrics import SegmentationScores

VIDEOS, T, H, W = 10, 3, 12, 11


def predictions(videos=VIDEOS, seed=0):
    """Probabilities of very different calibration, and masks some of them empty, one whole video's too."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(videos, T, H, W, dtype=torch.bool)
    for v in range(videos):
        masks[v, :, v % 5 : v % 5 + 4, 2 : 5 + v % 4] = True
    masks[1::3, 1] = False
    masks[3 % videos] = False
    noise = torch.randn(videos, T, H, W, generator=generator)
    bias = 4 * torch.randn(videos, 1, 1, 1, generator=generator)
    p = (3 * masks.float() + 1.5 * noise + bias).sigmoid()
    p[0, 0, 0, :3] = torch.tensor([0.0, 0.5, 1.0])  # on thresholds
    return p, masks


def literal_batch(p, masks):
    """mIoU and F of one batch of frames (N, H, W), one threshold after another, as the definition has them."""
    ious, curves = [], []
    thresholds = torch.linspace(0, 1 - 1e-10, 255)
    assert thresholds[-1] == 1
    for frame, truth in zip(p, masks, strict=True):
        chosen = frame > 0.5
        if truth.any():
            ious.append((chosen & truth).sum().double() / ((chosen | truth).sum() + 1e-7))
            curve = []
            for threshold in thresholds:
                marked = frame >= threshold
                right = (marked & truth).sum().double()
                precision, recall = right / (marked.sum() + 1e-20), right / (truth.sum() + 1e-20)
                f = 1.3 * precision * recall / (0.3 * precision + recall)
                curve.append(0.0 if f.isnan() else f.item())
            curves.append(curve)
        else:
            ious.append((~chosen).sum().double() / (truth.numel() + 1e-7))
    f = torch.tensor(curves, dtype=torch.double).mean(0).max().item() if curves else 0.0
    return torch.stack(ious).mean().item(), f


def literal(p, masks, batch):
    parts = [
        literal_batch(a.flatten(0, 1), b.flatten(0, 1)) for a, b in zip(p.split(batch), masks.split(batch), strict=True)
    ]
    return [sum(scores) / len(parts) for scores in zip(*parts, strict=True)]


def scored(p, masks, loader_batch, *args, order=None, **kwargs):
    scores = SegmentationScores(*args, **kwargs)
    for index in torch.arange(len(p)).split(loader_batch):
        scores.update(p[index], masks[index], positions=None if order is None else order[index])
    return values(scores)


def values(scores):
    found = scores.compute()
    assert list(found) == ["miou", "f_score"]
    return [value.item() for value in found.values()]


def close(numbers):
    return pytest.approx(numbers, abs=1e-6)  # float32 sums of at most 255-odd fractions


def test_one_frame_by_hand():
    masks = torch.tensor([[[[1, 1, 0, 0]]]], dtype=torch.bool)
    p = torch.tensor([[[[0.9, 0.2, 0.6, 0.1]]]])
    miou, f = scored(p, masks, 1)
    assert miou == close(1 / 3)
    # The best threshold lies between 0.6 and 0.9: precision 1, recall 1/2. At 0.2 they are 2/3 and 1, which gives less.
    assert f == close(1.3 * 0.5 / (0.3 + 0.5))
    assert 1.3 * 0.5 / 0.8 > 1.3 * (2 / 3) / (0.3 * 2 / 3 + 1)


def test_a_pixel_on_a_threshold_is_marked():
    """At 0 all pixels are, so that who marks nothing has the precision of the mask's share, and at 1 those of 1 are."""
    masks = torch.tensor([[[[1, 0, 0, 0]]]], dtype=torch.bool)
    assert scored(torch.zeros(1, 1, 1, 4), masks, 1)[1] == close(1.3 * 0.25 / (0.3 * 0.25 + 1))
    nearly = torch.tensor([[[[1.0, 0.9999, 0.0, 0.0]]]])  # above all thresholds but the last
    assert scored(nearly, masks, 1)[1] == 1
    half = torch.tensor([[[[127 / 254, 126.9 / 254, 0.0, 0.0]]]])
    assert scored(half, masks, 1)[1] == 1


def test_empty_truth_scores_the_background_kept_and_no_f():
    masks = torch.zeros(1, 2, 1, 4, dtype=torch.bool)
    p = torch.tensor([[[[0.9, 0.2, 0.6, 0.1]], [[0.1, 0.5, 0.1, 0.1]]]])
    assert scored(p, masks, 1) == close([(2 / 4 + 1) / 2, 0])
    assert scored(p, masks, 1, "avsbench") == close([(2 / 4 + 1) / 2, 0])


@pytest.mark.parametrize("loader_batch", [1, 3, 4, 10])
def test_dataset_mode_is_one_mean_and_one_maximum(loader_batch):
    p, masks = predictions()
    assert scored(p, masks, loader_batch) == close(literal(p, masks, batch=VIDEOS))


@pytest.mark.parametrize("loader_batch", [1, 3, 4, 10])
@pytest.mark.parametrize("group", [2, 4])
def test_avsbench_mode_groups_videos_whatever_the_loaders_batches(loader_batch, group):
    p, masks = predictions()
    assert scored(p, masks, loader_batch, "avsbench", group) == close(literal(p, masks, group))


def test_the_official_f_depends_on_the_batch():
    """Smaller batches each choose their own threshold; that is why the mode has a batch size and a default of 4."""
    p, masks = predictions(16)
    masks[3] = masks[4]  # no batch of empty masks, which would count as 0 and hide it
    by_batch = [scored(p, masks, 16, "avsbench", batch)[1] for batch in (1, 4, 16)]
    assert by_batch == sorted(by_batch, reverse=True)
    assert by_batch[0] > by_batch[2] + 0.01
    assert scored(p, masks, 16, "avsbench")[1] == by_batch[1]
    assert scored(p, masks, 16)[1] == close(by_batch[2])


def test_frames_without_a_mask_do_not_count():
    p, masks = predictions()
    has_mask = torch.zeros(VIDEOS, T, dtype=torch.bool)
    has_mask[:, 0] = True
    has_mask[5] = False  # a video without any
    scores = SegmentationScores("avsbench", 2)
    scores.update(p, masks, has_mask)
    kept = has_mask.any(1)
    assert values(scores) == close(literal(p[kept, :1], masks[kept, :1], 2))
    assert values(scores)[0] != pytest.approx(literal(p, masks, 2)[0], abs=1e-3)


def test_compute_keeps_the_remainder_for_what_comes_later():
    p, masks = predictions()
    scores = SegmentationScores("avsbench")
    scores.update(p[:6], masks[:6])
    assert values(scores) == close(literal(p[:6], masks[:6], 4))
    scores.update(p[6:], masks[6:])
    assert values(scores) == close(literal(p, masks, 4))
    scores.reset()
    scores.update(p[2:3], masks[2:3])
    assert values(scores) == close(literal(p[2:3], masks[2:3], 4))


def test_positions_give_the_order():
    p, masks = predictions()
    order = torch.randperm(VIDEOS, generator=torch.Generator().manual_seed(0))
    shuffled = scored(p[order], masks[order], 3, "avsbench", order=order + 7)
    assert shuffled == close(literal(p, masks, 4))
    assert shuffled[1] != pytest.approx(scored(p[order], masks[order], 3, "avsbench")[1], abs=1e-4)


def test_half_precision_is_scored_by_its_values():
    p, masks = predictions()
    assert scored(p.half(), masks, 4) == close(literal(p.half().float(), masks, VIDEOS))


def test_memory_is_a_row_a_video():
    p, masks = predictions()
    scores = SegmentationScores()
    scores.update(p, masks)
    assert sum(rows.numel() for rows in scores.videos) == VIDEOS * (5 + 255)


def test_a_mean_of_nothing_is_nan():
    p, masks = predictions(2)
    scores = SegmentationScores()
    scores.update(p, masks, torch.zeros(2, T, dtype=torch.bool))
    assert all(math.isnan(value) for value in values(scores))


def test_wrong_input_is_named():
    p, masks = predictions(2)
    scores = SegmentationScores()
    with pytest.raises(ValueError, match=r"probabilities are -3 \.\.\. 2.*decode_segmentation"):
        scores.update(5 * masks.float() - 3, masks)
    with pytest.raises(ValueError, match="probabilities are nan"):
        scores.update(p * torch.nan, masks)
    with pytest.raises(TypeError, match=r"masks are torch.float32.*anything but 0"):
        scores.update(p, 0.882 * masks)
    with pytest.raises(ValueError, match=r"wanted \(B, T, H, W\) twice"):
        scores.update(p, masks[..., :-1])
    with pytest.raises(ValueError, match="wanted 2 from 0 on"):
        scores.update(p, masks, positions=torch.tensor([-1, 0]))
    with pytest.raises(ValueError, match="mode is 'official'"):
        SegmentationScores("official")
    with pytest.raises(ValueError, match="batch_size is 0"):
        SegmentationScores(batch_size=0)
    scores.update(p, masks, positions=torch.tensor([0, 1]))
    scores.update(p, masks, positions=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="a position came twice"):
        scores.compute()
    scores = SegmentationScores()
    scores.update(p, masks, positions=torch.tensor([0, 1]))
    scores.update(p, masks)
    with pytest.raises(ValueError, match="2 of 4 videos came without a position"):
        scores.compute()


def score_a_share(rank, world, rendezvous, queue):
    """One process of several, with the videos that a DistributedSampler gives it; the last has none in the end."""
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    torch.set_num_threads(1)
    p, masks = predictions(9)
    padded = torch.cat([torch.arange(9), torch.arange(1)])[rank::world]
    with_positions = SegmentationScores("avsbench")
    dataset = SegmentationScores()
    for index in padded.split(2):
        with_positions.update(p[index], masks[index], positions=index)
        dataset.update(p[index], masks[index], positions=index)
    found = [values(with_positions), values(dataset)]
    with_positions.update(p[:1], masks[:1], positions=torch.tensor([20 + rank]))  # its own state is its own again
    found.append(len(torch.cat(with_positions.videos)) // 260)
    unordered = SegmentationScores("avsbench")
    unordered.update(p[:2], masks[:2])
    try:
        unordered.compute()
    except RuntimeError as error:
        found.append(str(error))
    lonely = SegmentationScores()
    if rank == 0:
        lonely.update(p, masks)
    found.append(values(lonely))
    queue.put((rank, found))
    dist.barrier()
    dist.destroy_process_group()


def test_several_processes_agree_with_one(tmp_path):
    context = mp.get_context("spawn")
    queue = context.Queue()
    arguments = 2, f"file://{tmp_path}/rendezvous", queue
    processes = [context.Process(target=score_a_share, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    by_rank = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    p, masks = predictions(9)
    for rank in range(2):
        ordered, dataset, own, refused, lonely = by_rank[rank]
        assert ordered == close(literal(p, masks, 4))  # the video that fills up the second share counts once
        assert dataset == close(literal(p, masks, 9))
        assert own == 6
        assert "needs the videos' order" in refused
        assert lonely == close(literal(p, masks, 9))
