import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ivt2.callbacks.drawing import (
    Found,
    draw_curves,
    draw_layers,
    draw_masked_clip,
    draw_queries,
    draw_similarity,
    plain,
    spread_over_pixels,
)
from ivt2.metrics.retrieval import RetrievalResult


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_mask_over_pixels_equals_a_loop():
    size, tubelet, patch = (4, 6, 9), 2, 3
    grid = (2, 2, 3)
    masked = np.random.default_rng(0).random(12) < 0.5
    spread = spread_over_pixels(masked, size)
    for t in range(4):
        for y in range(6):
            for x in range(9):
                index = (t // tubelet * grid[1] + y // patch) * grid[2] + x // patch
                assert spread[t, y, x] == masked[index]


def test_mask_of_an_image():
    assert spread_over_pixels(np.array([True, False, False, False]), (1, 8, 8)).sum() == 16


def test_patches_that_do_not_fit():
    with pytest.raises(ValueError, match="7 square patches do not cover"):
        spread_over_pixels(np.zeros(7, dtype=bool), (2, 8, 8))


def test_masked_clip_is_grey_where_hidden():
    video = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    video[:, 0] = 250
    masked = np.array([True, False, False, False] * 2)
    figure = draw_masked_clip(video, masked)
    images = [axes.images[0].get_array() for axes in figure.axes]
    assert len(images) == 4
    above, below = images[0], images[2]
    assert (above == [250, 0, 0]).all()
    assert (below[:4, :4] == 128).all()
    assert (below[4:] == [250, 0, 0]).all()
    assert figure.get_suptitle() == "25% of the patches hidden"


def test_a_mask_of_every_other_frame_lies_on_the_frames_it_speaks_of():
    video = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 8, 8), dtype=np.uint8)
    masked = np.zeros((10, 4), dtype=bool)
    masked[:, 1] = masked[3] = True
    figure = draw_masked_clip(video, masked.ravel())
    images = [axes.images[0].get_array() for axes in figure.axes]
    above, below = images[:8], images[8:]
    assert [picture[0, 0, 0] for picture in above] == [0, 2, 6, 8, 10, 12, 16, 18]
    assert all(
        (picture == before)[:, :4].all() for picture, before in zip(below, above, strict=True) if before[0, 0, 0] != 6
    )
    assert all((picture[:4, 4:] == 128).all() for picture in below)
    assert (below[2] == 128).all()


def test_curves_stand_in_panels_over_steps():
    panels = {
        "accuracy (%)": {r"knn$\frac{$": [(0, 10.0), (4, 30.0)], "linear": [(0, 20.0)]},
        "rank": {"rank": [(0, 1.0)]},
    }
    figure = draw_curves("a $set$", panels)
    left, right = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy (%)", "rank"]
    np.testing.assert_array_equal(left.lines[0].get_xydata(), [(0, 10), (4, 30)])
    assert [text.get_text() for text in left.get_legend().get_texts()] == [r"knn$\frac{$", "linear"]
    assert right.get_legend() is None
    pixels(figure)


def test_layers_are_rows_and_steps_columns():
    curves = {"clip/$3": [(2, 0.1), (4, 0.2)], "mae/5": [(4, 0.3), (6, 0.4)]}
    figure = draw_layers("cosine of $x$", curves)
    axes = figure.axes[0]
    matrix = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_array_equal(matrix, [[0.1, 0.2, np.nan], [np.nan, 0.3, 0.4]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "4", "6"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clip/$3", "mae/5"]
    pixels(figure)


def test_similarity_matrix_has_one_caption_per_clip():
    similarity = torch.arange(12.0).reshape(3, 4)
    result = RetrievalResult(similarity, torch.tensor([0, 0, 1, 2]), torch.arange(3), {"raw": {"t2v_r1": 50.0}})
    figure = draw_similarity(result, "a$b$")
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), similarity[:, [0, 2, 3]])
    assert figure.axes[0].get_title() == "a$b$: 3 of 3 clips, text-to-video R@1 50.0"
    pixels(figure)


def test_large_sets_are_thinned():
    size = 1000
    result = RetrievalResult(torch.eye(size), torch.arange(size), torch.arange(size), {"raw": {"t2v_r1": 1.0}})
    matrix = draw_similarity(result, "x").axes[0].images[0].get_array()
    np.testing.assert_array_equal(matrix, np.eye(200))


def test_queries_outline_the_right_clip_and_show_text_as_it_stands():
    frame = np.full((4, 6, 3), 200, dtype=np.uint8)
    finds = [
        Found(r"costs $5$ \frac{ and <b>bold</b>", [frame, None], [False, True]),
        Found("", [frame, frame], [True, False]),
    ]
    figure = draw_queries(finds)
    grid = np.array(figure.axes).reshape(2, 3)
    assert grid[0, 0].texts[0].get_text().replace("\n", " ") == r"costs $5$ \frac{ and <b>bold</b>"
    assert not grid[0, 0].texts[0].get_parse_math()
    assert [axes.axison for axes in grid[0, 1:]] == [False, True]
    assert [axes.axison for axes in grid[1, 1:]] == [True, False]
    green = (pixels(figure) == [44, 160, 44]).all(axis=-1)
    assert green.sum() > 100


def test_plain_text():
    assert plain("a\nb\x00\x1b[31mc") == "a b [31mc"
    assert plain("") == "?"
    assert plain("\u4e00") == "?"  # a letter that the font lacks
    assert plain("caf\u00e9") == "caf\u00e9"
    assert len(plain("word " * 100)) <= 140
