from pathlib import Path

import pytest

from robustclip.errors import InvalidInput
from service.config import each_setting, environment_name, is_loopback, load_settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a configuration file."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "robustclip.toml").write_text(
        '[clip]\narch = "file"\npretrained = "file"\ndevice = "file"\n'
    )
    monkeypatch.setenv("ROBUSTCLIP_CLIP__ARCH", "environment")
    monkeypatch.setenv("ROBUSTCLIP_CLIP__PRETRAINED", "environment")
    clip = load_settings({"clip": {"arch": "command"}}).clip
    assert (clip.arch, clip.pretrained, clip.device) == ("command", "environment", "file")
    assert load_settings().server.port == 8000


def test_a_misspelt_environment_name_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTCLIP_CLIP__ARHC", "tiny")
    with pytest.raises(
        InvalidInput, match=r"ROBUSTCLIP_CLIP__ARHC: no such setting. Did you mean ROBUSTCLIP_CLIP__ARCH\?"
    ):
        load_settings()


def test_an_unknown_key_of_the_file_is_refused_with_the_nearest(elsewhere: Path) -> None:
    (elsewhere / "robustclip.toml").write_text("[server]\nprot = 1\n")
    with pytest.raises(InvalidInput, match=r"server.prot: .*Did you mean server.port\?"):
        load_settings()


def test_a_section_that_is_not_the_service_s_is_refused_with_those_that_are(elsewhere: Path) -> None:
    (elsewhere / "robustclip.toml").write_text("[train]\nshots = 16\n")
    with pytest.raises(
        InvalidInput,
        match=r"train: .*The sections are clip, store, encoder, .*of the service and of nothing else",
    ):
        load_settings()


@pytest.mark.parametrize("name", ["ROBUSTCLIP_TRAIN__SHOTS", "ROBUSTCLIP_ARCH", "robustclip_clip__arhc"])
def test_an_environment_name_that_sets_nothing_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "16")
    with pytest.raises(InvalidInput, match="no such setting") as refusal:
        load_settings()
    assert refusal.value.field == name
    assert refusal.value.help


def test_broken_toml_is_refused_by_name(elsewhere: Path) -> None:
    (elsewhere / "robustclip.toml").write_text("[server\n")
    with pytest.raises(InvalidInput, match=r"robustclip.toml: not valid TOML"):
        load_settings()


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("server", "port", "70000"),
        ("server", "port", "x"),
        ("limits", "labels", "1"),
        ("store", "poll_seconds", "nan"),
        ("probe", "radius", "300/255"),
    ],
)
def test_a_value_out_of_range_is_refused_naming_the_setting(section: str, field: str, value: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        load_settings({section: {field: value}})
    assert refusal.value.field == f"{section}.{field}"


def test_an_address_that_others_can_reach_needs_consent() -> None:
    with pytest.raises(InvalidInput, match="--insecure-no-auth"):
        load_settings({"server": {"host": "0.0.0.0"}})
    assert load_settings({"server": {"host": "0.0.0.0", "insecure_no_auth": True}}).server.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("evil.example", False),
    ],
)
def test_loopback_is_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_a_queue_that_can_t_hold_one_request_is_refused() -> None:
    with pytest.raises(InvalidInput, match="queue_images"):
        load_settings({"engine": {"queue_images": "3"}})


def test_every_setting_is_described_and_stands_in_the_operator_s_page() -> None:
    page = (Path(__file__).parents[2] / "service" / "README.md").read_text()
    for section, field, info in each_setting():
        assert info.description
        assert f"| `{section}.{field}` | {_default(info.default)} | {info.description} |" in page, (
            f"{section}.{field}"
        )
    assert environment_name("clip", "arch") in page


def _default(value: object) -> str:
    return "" if value is None else f"`{value}`"
