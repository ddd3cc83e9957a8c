"""Flags and files become the dataclasses that runs are made from."""

import pytest
import yaml

from fastav.training.arguments import train_config, train_parser

NEEDED = ["--task=localization", "--data.root=x", "--visual.name=v", "--audio.name=a"]


def parse(*arguments):
    return train_config(train_parser(arguments).parse_args(list(arguments)))


@pytest.mark.parametrize(
    ("word", "layers"),
    [
        ("4", 4),
        ("all", "all"),
        ("[1, -1]", [1, -1]),
        ("blocks.*", "blocks.*"),
        ("{visual: 2, audio: all}", {"visual": 2, "audio": "all"}),
        ("null", None),
    ],
)
def test_layers_are_what_is_written(word, layers):
    assert parse(*NEEDED, f"--adapter.layers={word}").adapter["layers"] == layers


def test_the_method_and_the_task_decide_which_flags_there_are(tmp_path):
    config = parse(*NEEDED, "--method=molt", "--adapter.router=hard", "--head.supervision=weak")
    assert (config.method, config.adapter["router"], config.head["supervision"]) == ("molt", "hard", "weak")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"method": "molt", "task": "parsing", "adapter": {"aux_weight": 0.5}}))
    config = parse(f"--config={file}", "--head.visual_smoothing=0.25", *NEEDED[1:])
    assert (config.task, config.adapter["aux_weight"], config.head["visual_smoothing"]) == ("parsing", 0.5, 0.25)
    assert "supervision" not in config.head
    with pytest.raises(SystemExit):
        parse(*NEEDED, "--adapter.router=hard")  # Mettle has none


def test_segmentation_injects_by_default():
    task = ["--task=segmentation", *NEEDED[1:]]
    assert parse(*task).adapter["inject_stages"] == "stages"
    assert parse(*task, "--adapter.inject_stages=[0, 2]").adapter["inject_stages"] == [0, 2]
    assert parse(*NEEDED).adapter["inject_stages"] is None
    assert "size" not in parse(*task).head  # that of the data set's masks


def test_what_follows_from_the_data_is_no_flag():
    for flag in ("--head.num_classes=3", "--head.num_tokens=3", "--head.width=3"):
        with pytest.raises(SystemExit):
            parse(*NEEDED, flag)


def test_later_words_win(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"optimizer": {"lr": 0.5, "epochs": 3}}))
    config = parse(*NEEDED, f"--config={file}", "--optimizer.lr=0.25")
    assert (config.optimizer.lr, config.optimizer.epochs, config.optimizer.accumulate) == (0.25, 3, 1)
