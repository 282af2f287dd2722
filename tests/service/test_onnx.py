"""ONNX Runtime behind the same endpoints."""

from pathlib import Path

import pytest
from prompt_sets import learned_set
from serving import LABELS, Running, picture, serving

from robustclip.errors import EncoderRefused
from robustclip.models.clip import Clip

pytest.importorskip("onnxruntime")


@pytest.mark.slow
def test_onnx_and_torch_answer_alike_and_probes_run_in_torch(
    tmp_path: Path, server: Running, tiny: Clip
) -> None:
    graph = tmp_path / "onnx" / "tiny.onnx"
    with serving(tmp_path, encoder={"backend": "onnx", "path": graph}) as other:
        assert graph.exists()
        asked = {"files": {"image": picture()}, "data": {"labels": LABELS, "top_k": "0", "defense": "jpeg"}}
        here, there = (each.client.post("/classify", **asked).json() for each in (server, other))
        assert there["model"]["backend"] == "onnx"
        for expected, found in zip(
            here["results"][0]["predictions"], there["results"][0]["predictions"], strict=True
        ):
            assert found["label"] == expected["label"]
            assert found["logit"] == pytest.approx(expected["logit"], abs=1e-2)
        ref = other.store.publish(learned_set(tiny, name="seeing", visual=True))
        assert (
            other.client.post(
                "/classify", files={"image": picture()}, data={"labels": LABELS, "prompt_set": str(ref)}
            ).status_code
            == 200
        )
        report = other.client.post(
            "/probe", files={"image": picture()}, data={"labels": LABELS, "steps": "3", "eps": "8/255"}
        ).json()["reports"][0]
        assert report["victim"]["encoder"] == "onnx"
        assert report["backward"] > 0
        assert 1 - other.metric("robustclip_parity_cosine_min") < 1e-5


def test_a_damaged_graph_refuses_to_start(tmp_path: Path) -> None:
    graph = tmp_path / "tiny.onnx"
    graph.write_bytes(b"no graph")
    with (
        pytest.raises(EncoderRefused, match=r"tiny\.onnx"),
        serving(tmp_path, encoder={"backend": "onnx", "path": graph}),
    ):
        pass
