"""Reward models with random weights in the real layout: their score is a direct forward's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from reward_models import (
    RESPONSES,
    SPECIAL,
    alone,
    change_weights,
    rollouts,
    save_armo,
    save_classifier,
    save_starling,
    save_tokens,
    values,
)
from safetensors.torch import load_file

from rlcli.config.rewards import RewardConfig
from rlcli.errors import RewardError
from rlcli.rewards import build_scorer, check_reward, needs_model
from rlcli.rewards.armo import GATING_MARK
from rlcli.rewards.base import score_all
from rlcli.rewards.model_files import check_model_files
from rlcli.rewards.reward_model import load_reward_model
from rlcli.types import Reward

CPU = torch.device("cpu")
DECODERS = ("Llama", "Qwen2", "Qwen3", "Gemma2", "Mistral")
"""Skywork and FsfairX, Qwen's own, Skywork V2, Skywork's Gemma, weqweasdas' RM-Mistral."""
CLASSIFIERS = (*DECODERS, "DebertaV2", "Roberta")
EVERY = (*CLASSIFIERS, "Armo", "Starling")
BFLOAT16_TOLERANCE = 0.15
"""Of scores between -6 and 6; the head computes in float32, the body rounds to 8 bits."""


def change_json(file: Path, **changes: object) -> None:
    """Keys of a JSON file set; None takes one away."""
    said = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reward_models")
    made = {kind: save_classifier(root / kind, kind) for kind in CLASSIFIERS}
    starling = save_starling(root / "Starling")
    return {**made, "Armo": save_armo(root / "Armo"), "Starling": starling}


@pytest.mark.parametrize("kind", DECODERS)
def test_the_published_names_of_weights_are_read(folders: dict[str, Path], kind: str) -> None:
    names = set(load_file(folders[kind] / "model.safetensors"))
    layer = "model.layers.0.self_attn."
    assert {"score.weight", "model.embed_tokens.weight", "model.norm.weight"} < names
    assert {f"{layer}{part}_proj.weight" for part in "qkvo"} < names
    assert not [name for name in names if not name.startswith(("model.", "score."))]


def test_debertas_published_names_of_weights_are_read(folders: dict[str, Path]) -> None:
    names = set(load_file(folders["DebertaV2"] / "model.safetensors"))
    assert {"pooler.dense.weight", "classifier.weight", "classifier.bias"} < names
    assert "deberta.encoder.layer.1.attention.self.query_proj.weight" in names
    assert "deberta.encoder.rel_embeddings.weight" in names


@pytest.mark.parametrize("kind", DECODERS)
def test_a_classifiers_score_is_its_own_forward_over_its_own_chat_template(
    folders: dict[str, Path], kind: str
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    model = getattr(transformers, f"{kind}ForSequenceClassification").from_pretrained(folders[kind])
    text = "<bos><user>12 + 7 = ?<eos><assistant>the answer is 19<eos>"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert int((ids == 1).sum()) == 1
    hidden = model.eval().requires_grad_(False).model(ids).last_hidden_state[0, -1]
    expected = float(hidden @ model.score.weight[0])
    loaded = load_reward_model(folders[kind], device=CPU)
    assert alone(loaded, ["the answer is 19"]) == [pytest.approx(expected, abs=1e-5)]


def test_an_encoder_without_a_template_reads_question_and_answer_as_a_pair(
    folders: dict[str, Path],
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["DebertaV2"])
    model = transformers.DebertaV2ForSequenceClassification.from_pretrained(folders["DebertaV2"])
    inputs = tokenizer("12 + 7 = ?", "19", return_tensors="pt")
    assert inputs["token_type_ids"].tolist() == [[0] * 12 + [1] * 3]
    expected = model.eval()(**inputs).logits.item()
    loaded = load_reward_model(folders["DebertaV2"], device=CPU)
    assert alone(loaded, ["19"]) == [pytest.approx(expected, abs=1e-5)]


def test_armorm_weighs_its_objectives_by_a_gate_that_reads_the_end_of_the_prompt(
    folders: dict[str, Path],
) -> None:
    weights = load_file(folders["Armo"] / "model.safetensors")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["Armo"])
    config = transformers.LlamaConfig.from_pretrained(folders["Armo"])
    body = transformers.LlamaModel(config).eval().requires_grad_(False)
    body.load_state_dict(
        {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
    )
    before = "<bos><|start_header_id|>user<|end_header_id|>\n\n12 + 7 = ?"
    ids = tokenizer(f"{before}{GATING_MARK}19<|eot_id|>", add_special_tokens=False)["input_ids"]
    place = len(tokenizer(before, add_special_tokens=False)["input_ids"])
    assert ids[place] == SPECIAL.index("<|eot_id|>")
    hidden = body(torch.tensor([ids])).last_hidden_state[0]
    gate = hidden[place]
    for i in range(4):
        gate = weights[f"gating.layers.{i}.weight"] @ gate + weights[f"gating.layers.{i}.bias"]
        gate = gate.relu() if i < 3 else (gate / 10).softmax(0) * 1.5
    objectives = weights["regression_layer.weight"] @ hidden[-1]
    expected = float(gate @ (objectives @ weights["reward_transform_matrix"]))
    loaded = load_reward_model(folders["Armo"], device=CPU)
    assert alone(loaded, ["19"]) == [pytest.approx(expected, abs=1e-5)]


@pytest.mark.parametrize("kind", EVERY)
def test_a_batch_scores_as_its_rows_do_alone_whatever_side_the_tokenizer_pads(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    expected = alone(load_reward_model(folders[kind], device=CPU), RESPONSES)
    assert len({round(value, 4) for value in expected}) == len(RESPONSES)
    folder = Path(shutil.copytree(folders[kind], tmp_path / "left"))
    for side in ("left", "right"):
        change_json(folder / "tokenizer_config.json", padding_side=side)
        model = load_reward_model(folder, device=CPU)
        assert model.tokenizer.padding_side == side
        assert values(model.rate(rollouts(RESPONSES))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("pad", ["<eos>", None])
def test_the_score_stays_at_the_last_token_when_pad_is_eos_or_unset(
    folders: dict[str, Path], tmp_path: Path, kind: str, pad: str | None
) -> None:
    expected = alone(load_reward_model(folders[kind], device=CPU), RESPONSES)
    folder = Path(shutil.copytree(folders[kind], tmp_path / "pad"))
    change_json(folder / "tokenizer_config.json", pad_token=pad)
    if kind != "Roberta":  # its positions begin behind the pad token's id
        change_json(folder / "config.json", pad_token_id=None if pad is None else 2)
    model = load_reward_model(folder, device=CPU)
    assert (model.tokenizer.pad_token_id == 2) is (pad is not None)
    assert values(model.rate(rollouts(RESPONSES))) == pytest.approx(expected, abs=1e-5)


def test_batches_hold_rows_of_like_length_within_the_token_budget(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_reward_model(folders["Llama"], device=CPU)
    expected = alone(model, RESPONSES)
    shapes: list[tuple[int, ...]] = []
    model.model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    monkeypatch.setattr("rlcli.rewards.reward_model.TOKENS_PER_BATCH", 96)
    assert values(model.rate(rollouts(RESPONSES))) == pytest.approx(expected, abs=1e-5)
    assert len(shapes) > 1
    assert sum(rows for rows, _ in shapes) == len(RESPONSES)
    assert all(rows * width <= 96 for rows, width in shapes)


def test_a_long_prompt_loses_its_beginning_and_a_long_response_is_unscored(
    folders: dict[str, Path],
) -> None:
    model = load_reward_model(folders["Llama"], device=CPU)
    seen: list[list[int]] = []
    model.model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"][0].tolist()), with_kwargs=True
    )
    (cut,) = model.rate(rollouts(["is 19"], question="12 + 7 " * 20))
    assert cut.value is not None
    assert model.tokenizer.decode(seen[0]).endswith("12 + 7 <eos><assistant>is 19<eos>")
    assert (len(seen[0]), seen[0][0]) == (96, 1)
    short, long = model.rate(rollouts(["19", "19 " * 40]))
    assert short.value is not None
    assert long.value is None
    assert "needs 121 tokens of the reward model, which has 95" in (long.error or "")


@pytest.mark.parametrize("kind", ["DebertaV2", "Armo"])
def test_pairs_and_gates_are_cut_the_same_way(folders: dict[str, Path], kind: str) -> None:
    model = load_reward_model(folders[kind], device=CPU)
    cut, long = model.rate(rollouts(["19", "19 " * 40], question="12 + 7 " * 20))
    assert cut.value is not None
    assert "lower data.max_response_tokens" in (long.error or "")


def test_a_template_that_refuses_a_conversation_leaves_it_unscored(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "m", "Llama")
    model = load_reward_model(folder, device=CPU)
    model.tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    (reward,) = model.rate(rollouts(["19"]))
    assert reward == Reward(
        value=None, error="the reward model's chat template refuses this: no such role"
    )


def test_a_decoder_without_a_template_reads_prompt_and_response_as_one_text(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    folder = save_classifier(tmp_path / "m", "Llama")
    save_tokens(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    model = load_reward_model(folder, device=CPU)
    ids = model.tokenizer("12 + 7 = ?19", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == 1
    plain = transformers.LlamaForSequenceClassification.from_pretrained(folder).eval()
    assert alone(model, ["19"]) == [pytest.approx(plain(ids).logits.item(), abs=1e-5)]


def test_a_causal_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="is a Qwen2ForCausalLM, and no reward model"):
        check_reward(RewardConfig(model=str(tiny_model)), {"x"}, model_dir=tiny_model)
    nameless = Path(shutil.copytree(tiny_model, tmp_path / "nameless"))
    change_json(nameless / "config.json", architectures=None)
    with pytest.raises(RewardError, match=r"lacks 1 weights of a Qwen2.*, score\.weight among"):
        load_reward_model(nameless, device=CPU)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_head_under_another_name_is_refused(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / "renamed"))
    weights = load_file(folder / "model.safetensors")
    (name,) = (
        n
        for n in ("score.weight", "classifier.weight", "classifier.out_proj.weight")
        if n in weights
    )
    change_weights(folder, **{name: None, f"reward.{name}": weights[name]})
    with pytest.raises(RewardError, match=rf"lacks 1 weights of a {kind}.*, {name} among"):
        load_reward_model(folder, device=CPU)


@pytest.mark.parametrize("name", ["score.bias", "model.layers.2.mlp.up_proj.weight"])
def test_weights_of_another_architecture_are_refused_not_dropped(tmp_path: Path, name: str) -> None:
    folder = save_classifier(tmp_path / "m", "Llama")
    change_weights(folder, **{name: torch.ones(1)})
    with pytest.raises(RewardError, match=rf"1 weights that .* does\s+not use, {name}"):
        load_reward_model(folder, device=CPU)


def test_a_language_head_beside_the_score_is_no_fault(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["Llama"], tmp_path / "m"))
    change_weights(folder, **{"lm_head.weight": torch.ones(3, 16)})
    expected = alone(load_reward_model(folders["Llama"], device=CPU), RESPONSES)
    assert alone(load_reward_model(folder, device=CPU), RESPONSES) == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize("name", ["LLMForSequenceRegression", "InternLM2ForRewardModel"])
def test_kinds_that_are_not_built_in_are_refused_by_name_with_the_way_to_serve_them(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    with pytest.raises(RewardError, match=name) as caught:
        check_model_files(tmp_path)
    assert "--reward_model http://HOST/classify" in str(caught.value)
    assert str(caught.value).count("\n") < 3


@pytest.mark.parametrize("num_labels", [2, 5])
def test_a_classifier_with_several_labels_is_refused(tmp_path: Path, num_labels: int) -> None:
    folder = save_classifier(tmp_path / "m", "Llama", num_labels=num_labels)
    if num_labels > 2:  # transformers leaves two labels unsaid
        with pytest.raises(RewardError, match="5 labels"):
            check_model_files(folder)
    change_json(folder / "config.json", id2label=None, label2id=None)
    check_model_files(folder)
    with pytest.raises(RewardError, match="does not load as a reward model with one score"):
        load_reward_model(folder, device=CPU)


def test_armorm_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = save_armo(tmp_path / "m")
    save_tokens(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(RewardError, match="has no chat template, and ArmoRM"):
        load_reward_model(folder, device=CPU)


@pytest.mark.parametrize("kind", EVERY)
def test_the_head_computes_in_float32_under_bfloat16_weights(
    folders: dict[str, Path], kind: str
) -> None:
    half = load_reward_model(folders[kind], device=CPU, dtype=torch.bfloat16)
    scores = alone(half, RESPONSES)
    assert any(score != float(torch.tensor(score).bfloat16()) for score in scores)
    assert scores == pytest.approx(
        alone(load_reward_model(folders[kind], device=CPU), RESPONSES), abs=BFLOAT16_TOLERANCE
    )


def test_armorms_head_keeps_the_digits_it_is_stored_with(folders: dict[str, Path]) -> None:
    stored = load_file(folders["Armo"] / "model.safetensors")
    half = load_reward_model(folders["Armo"], device=CPU, dtype=torch.bfloat16).model.state_dict()
    for name, tensor in stored.items():
        is_head = name.startswith(("gating.", "regression_layer.", "reward_transform_matrix"))
        assert torch.equal(half[name], tensor if is_head else tensor.bfloat16()), name


def test_a_run_scores_with_the_model_in_a_thread_of_its_own(folders: dict[str, Path]) -> None:
    config = RewardConfig(model=str(folders["Llama"]))
    assert needs_model(config)
    assert check_reward(config, {"no rule knows it"}, model_dir=folders["Llama"]) == []
    scorer = build_scorer(config, model_dir=folders["Llama"], device=CPU)
    try:
        assert not scorer.can_recover(Reward(value=None))
        futures = [scorer.submit(rollout) for rollout in rollouts(RESPONSES)]
        scored = [future.result(timeout=60) for future in futures]
        assert scored == score_all(scorer, rollouts(RESPONSES))
        model = load_reward_model(folders["Llama"], device=CPU)
        # to the bit: on a CPU no timing may show in a score
        assert values(scored) == alone(model, RESPONSES)
    finally:
        scorer.close()
    with pytest.raises(RuntimeError, match="closed"):
        scorer.submit(rollouts(["x"])[0])
