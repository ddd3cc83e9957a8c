"""The picture shows the attention that it is given, where it is."""

import pytest
import torch

from fastav.training.pictures import draw_attention

figures = pytest.importorskip("matplotlib.figure")
Image = pytest.importorskip("PIL.Image")


def test_attention_lies_over_the_frames_and_the_sound(tmp_path, monkeypatch):
    drawn = []
    save = figures.Figure.savefig
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, path: (drawn.append(figure), save(figure, path)))
    frames = torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8)
    seen = torch.full((2, 3, 2, 2), 0.1)
    seen[1, 2, 0, 1] = 0.5  # token 3, second frame, above right
    heard = torch.full((2, 3, 1, 4), 0.25)
    heard[0, 0] = torch.tensor([0.0, 0.0, 1.0, 0.0])  # token 1, first second, third quarter
    prefix = torch.zeros(2, 3)
    prefix[:, 1] = 0.6
    draw_attention(
        tmp_path / "clip.png",
        frames=frames,
        frame_attention=seen,
        frame_prefix=prefix,
        spectrograms=torch.rand(2, 8, 20),
        sound_attention=heard,
        sound_prefix=torch.zeros(2, 3),
        title="a clip",
        columns=["1: dog", "2: cat"],
    )
    (figure,) = drawn
    width, height = Image.open(tmp_path / "clip.png").size
    assert (width, height) == tuple((figure.get_size_inches() * figure.dpi).astype(int))
    rows = [figure.axes[row : row + 2] for row in range(0, len(figure.axes), 2)]
    assert len(rows) == 4 + 1 + 4  # frames and three tokens, a gap, sound and three tokens
    assert [axes.get_title() for axes in rows[0]] == ["1: dog", "2: cat"]
    labels = [row[0].get_ylabel() for row in rows]
    assert labels[1] == "token 1\nup to 0.4 ×"  # 4 places of at most 0.1
    assert labels[2] == "token 2\nup to 0.4 ×\n60 % to no patch"
    assert labels[3] == "token 3\nup to 2.0 ×"
    assert labels[6] == "token 1\nup to 4.0 ×"
    assert (labels[0], labels[5]) == ("frames", "sound")
    # The first picture of each axes is what lies below, the second what is laid over it.
    assert (rows[0][1].images[0].get_array() == frames[1].permute(1, 2, 0).numpy()).all()
    heat = rows[3][1].images[1].get_array()
    assert heat.shape == (40, 40)
    assert heat[:10, 30:].min() == pytest.approx(1)
    assert heat[30:, :10].max() == pytest.approx(0.2)  # of the row's largest
    stripe = rows[6][0].images[1].get_array()
    assert stripe.shape == (8, 20)
    assert stripe[:, 12].min() > 0.8
    assert stripe[:, :8].max() == 0
