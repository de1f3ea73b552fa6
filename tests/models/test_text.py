"""Encoders of texts given as bytes: hashes against Python's strings, pooling, padding, and masks of every kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from repertory.core.classifier import classifier_of
from repertory.core.texts import text_bytes
from repertory.errors import DataError, OptionError, UserError
from repertory.layers.embedding import embedding_head
from repertory.models.sources import model_part
from repertory.models.text import HashedText, bidirectional, hugging_face, mean_pool
from repertory.models.text.hashed import hashed_trigrams, hashed_words, word_characters

TEXTS = ["The cat sat on the mat.", "the CAT sat: on the-mat", "où est le chat?", "a", ""]


def hashes(texts: list[str], length: int = 40) -> tuple[list[set[int]], list[set[int]]]:
    characters = word_characters(text_bytes(texts, length))
    found = hashed_words(characters), hashed_trigrams(characters)
    return tuple([set(row[row > 0].tolist()) for row in rows] for rows in found)  # type: ignore[return-value]


def test_equal_words_have_equal_hashes_wherever_they_stand_and_others_do_not() -> None:
    texts = ["one two", "  two, one!", "xone twoo", "one_two", "One\n\nTWO"]
    words, _ = hashes(texts)
    assert words[0] == words[1] == words[3] == words[4]
    assert not words[0] & words[2]


def test_many_words_collide_no_more_than_a_hash_of_31_bits_must() -> None:
    names = [f"{first}{second}{third}" for first in "abcdefghij" for second in "klmnopqrst" for third in "0123456789é"]
    rows = hashed_words(word_characters(text_bytes(names, 6)))
    assert (rows > 0).sum(1).unique().tolist() == [1]
    assert len(rows[rows > 0].unique()) == len(names)


def test_trigrams_are_those_of_words_between_spaces() -> None:
    def grams(text: str) -> set[bytes]:
        padded = b" " + "".join(c.lower() if c.isalnum() else " " for c in text).encode() + b" "
        return {padded[i - 1 : i + 2] for i in range(1, len(padded) - 1) if padded[i : i + 1] != b" "}

    _, found = hashes(TEXTS)
    for first in range(len(TEXTS)):
        assert len(found[first]) == len(grams(TEXTS[first]))
        for second in range(len(TEXTS)):
            assert len(found[first] & found[second]) == len(grams(TEXTS[first]) & grams(TEXTS[second]))


def test_letters_beyond_ascii_belong_to_words() -> None:
    words, _ = hashes(["naïve façade", "façade", "fa ade"])
    assert words[1] < words[0]
    assert len(words[2]) == 2


def test_padding_and_neighbours_in_the_batch_do_not_matter() -> None:
    model = HashedText(outputs=5, buckets=64).eval()
    alone = torch.cat([model(text_bytes([text], 30)) for text in TEXTS])
    torch.testing.assert_close(model(text_bytes(TEXTS, 64)), alone)
    torch.testing.assert_close(model(text_bytes(TEXTS, 30)[:4].view(2, 2, 30)).flatten(0, 1), alone[:4])


def test_an_empty_text_is_embedded_as_zero_without_a_gradient_and_one_without_words_moves_no_vector() -> None:
    model = HashedText(buckets=64).eval()
    gradients = []
    for texts in (["", "?!", "word"], ["?!", "word"], ["word"]):
        output = model(text_bytes(texts, 8))
        # Before training there is no bias either.
        assert not output[:-1].any()
        gradients.append(torch.autograd.grad(output.sum(), list(model.parameters())))
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[1][0], gradients[2][0])


def test_before_training_texts_that_share_words_are_near_each_other() -> None:
    model = HashedText().eval()
    first, near, far = model(text_bytes(["open a file", "files that open", "sum of numbers"], 16))
    assert torch.cosine_similarity(first, near, dim=0) > torch.cosine_similarity(first, far, dim=0) + 0.2


def test_words_are_left_out_in_training_only_and_by_the_global_generator() -> None:
    model = HashedText(buckets=64)
    texts = text_bytes(TEXTS, 32)
    torch.manual_seed(0)
    first = model(texts)
    assert not torch.equal(model(texts), first)
    torch.manual_seed(0)
    assert torch.equal(model(texts), first)
    model.eval()
    assert torch.equal(model(texts), model(texts))


def test_last_layer_is_found_and_replaced() -> None:
    model = HashedText(width=4, buckets=64)
    assert classifier_of(model)[0] == "head"
    embedding_head(model, outputs=0, dim=3)
    output = model.eval()(text_bytes(["one", ""], 8))
    torch.testing.assert_close(output.norm(dim=1), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("options", [{"outputs": 0}, {"width": 0}, {"buckets": 0}, {"hidden": 0}, {"dropout": 1.0}])
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        HashedText(**options)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"\(2, 1, 4, 4\) are no texts"):
        HashedText()(torch.zeros(2, 1, 4, 4))


def test_mean_pool_leaves_out_padding_on_either_side_whatever_it_holds() -> None:
    states = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = states.mean(1)
    junk = torch.full((2, 2, 4), float("inf"))
    mask = torch.ones(2, 3, dtype=torch.int64)
    none = torch.zeros(2, 2, dtype=torch.int64)
    for padded, kept in (
        (torch.cat([states, junk], 1), torch.cat([mask, none], 1)),
        (torch.cat([junk, states], 1), torch.cat([none, mask], 1)),
    ):
        torch.testing.assert_close(mean_pool(padded, kept), expected)
    assert not mean_pool(states, torch.zeros(2, 3)).any()
    assert mean_pool(states.half(), mask).dtype == torch.float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that writes a tiny network with random weights and a tokenizer of characters to a folder."""
    transformers = pytest.importorskip("transformers")
    import tokenizers

    letters = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz:? "]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    shape = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    configs = {
        "bert": lambda: transformers.BertConfig(**shape, intermediate_size=8, max_position_embeddings=24),
        "qwen2": lambda: transformers.Qwen2Config(**shape, intermediate_size=8, num_key_value_heads=1),
    }

    def write(kind: str, safe: bool = True) -> Path:
        path = tmp_path_factory.mktemp(kind)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.AutoModel.from_config(configs[kind]())
        model.save_pretrained(path)
        if not safe:
            (path / "model.safetensors").unlink()
            torch.save(model.state_dict(), path / "pytorch_model.bin")
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=20
        )
        tokenizer.save_pretrained(path)
        return path

    return write


def hidden(model: Any, texts: list[str], length: int = 12) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(text_bytes(texts, length))
    return output


def test_an_encoder_from_a_folder_gives_the_mean_of_its_token_states(folder: Any) -> None:
    transformers = pytest.importorskip("transformers")
    path = folder("bert")
    found = hidden(hugging_face(str(path)), ["abc", "xy", ""])
    reference = transformers.AutoModel.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    for row, text in enumerate(["abc", "xy"]):
        with torch.no_grad():
            states = reference(**tokenizer(text, return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(found[row], states[0].mean(0), rtol=1e-5, atol=1e-6)
    assert not found[2].any()


@pytest.mark.parametrize(("pooling", "place"), [("first", 0), ("last", -1)])
def test_other_poolings_take_one_token_beside_padding(folder: Any, pooling: str, place: int) -> None:
    model = hugging_face(str(folder("bert")), pooling=pooling).eval()
    alone = model.encoder(input_ids=torch.tensor([[2, 3, 4]])).last_hidden_state[0, place]
    torch.testing.assert_close(hidden(model, ["abc", "abcdefg"])[0], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_decoder_reads_both_ways_where_asked_in_every_kernel(folder: Any, kernel: str) -> None:
    model = hugging_face(str(folder("qwen2"))).eval()
    model.encoder.set_attn_implementation(kernel)
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])

    def first_tokens(mask: Tensor) -> Tensor:
        with torch.no_grad():
            states: Tensor = model.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        return states[:, 0]

    assert torch.equal(*first_tokens(torch.ones_like(tokens)))
    bidirectional(model.encoder)
    # What kernels go by that are given no mask.
    assert not any(getattr(module, "is_causal", False) for module in model.encoder.modules())
    assert not torch.allclose(*first_tokens(torch.ones_like(tokens)))
    # What the mask leaves out is still not seen.
    assert torch.allclose(*first_tokens(torch.tensor([[1, 1, 1, 0]] * 2)))


def test_causal_false_is_an_option_and_padding_changes_nothing(folder: Any) -> None:
    path = str(folder("qwen2"))
    both, one = hugging_face(path, causal=False, pooling="first"), hugging_face(path, pooling="first")
    assert not torch.allclose(*hidden(both, ["abc", "abd"]))
    assert torch.allclose(*hidden(one, ["abc", "abd"]))
    torch.testing.assert_close(hidden(both, ["abc"]), hidden(both, ["abc", "a long one"])[:1], rtol=1e-5, atol=1e-6)


def test_a_network_that_cannot_look_ahead_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    recurrent = transformers.MambaModel(
        transformers.MambaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, state_size=2)
    )
    with pytest.raises(UserError, match="MambaModel reads from left to right whatever"):
        bidirectional(recurrent)
    with pytest.raises(UserError, match="Linear has no config"):
        bidirectional(torch.nn.Linear(2, 2))


def test_prefixes_go_before_queries_and_passages(folder: Any) -> None:
    path = str(folder("bert"))
    model = hugging_face(path, query_prefix="q: ", passage_prefix="p: ").eval()
    plain = hugging_face(path).eval()
    pair = text_bytes(["abc", "xyz"], 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(pair)[0], plain(text_bytes(["q: abc", "p: xyz"], 12)))
        torch.testing.assert_close(model(pair[:, 1]), plain(text_bytes(["p: xyz"], 12)))
        torch.testing.assert_close(model(pair[:, :1])[0], plain(text_bytes(["q: abc"], 12)))


def test_texts_are_cut_at_what_the_network_takes(folder: Any) -> None:
    model = hugging_face(str(folder("bert")))
    assert model.max_tokens == 20
    long = "abcdefghij" * 4
    torch.testing.assert_close(hidden(model, [long], 40), hidden(model, [long[:20]], 40))
    assert hugging_face(str(folder("bert")), max_tokens=5).max_tokens == 5


def test_without_outputs_nothing_is_learnt_behind_the_network_and_with_them_a_layer_is(folder: Any) -> None:
    path = str(folder("bert"))
    kept, made = hugging_face(path), hugging_face(path, outputs=3)
    assert not kept.head.weight.requires_grad
    assert hidden(kept, ["abc"]).shape == (1, 8)
    assert hidden(made, ["abc"]).shape == (1, 3)
    assert classifier_of(made)[1] is made.head
    made(text_bytes(["abc", ""], 4)[None]).sum().backward()
    # Several processes wait for the gradient of every parameter.
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)


def test_weights_come_from_safetensors_only(folder: Any) -> None:
    with pytest.raises(UserError, match="weights in safetensors"):
        hugging_face(str(folder("bert", safe=False)))


def test_random_weights_need_no_weights(folder: Any) -> None:
    path = folder("bert")
    (path / "model.safetensors").unlink()
    model = hugging_face(str(path), pretrained=False)
    assert hidden(model, ["abc"]).shape == (1, 8)


def test_code_of_the_repository_is_never_run(folder: Any) -> None:
    path = folder("bert")
    written = path / "config.json"
    text = written.read_text().replace(
        '"model_type": "bert"', '"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}'
    )
    written.write_text(text)
    (path / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(UserError, match="needs no code of its own"):
        hugging_face(str(path))


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        hugging_face(str(tmp_path / "nothing"))


def test_bad_options_of_a_network_are_named(folder: Any) -> None:
    path = str(folder("bert"))
    for name, value in (("pooling", "max"), ("causal", True), ("max_tokens", 0), ("outputs", 0)):
        with pytest.raises(OptionError, match=f"{name}="):
            hugging_face(path, **{name: value})


def test_the_command_line_names_a_network_with_its_options() -> None:
    part = model_part("hf:BAAI/bge-small-en:pooling=first,query_prefix='query: '")
    assert part.factory == "repertory.models.text:hugging_face"
    assert part.options == {
        "name": "BAAI/bge-small-en",
        "pretrained": True,
        "pooling": "first",
        "query_prefix": "query: ",
    }
