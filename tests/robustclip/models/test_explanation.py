from typing import Any

import pytest
import torch
from prompt_sets import learned_set, template_set

from prompts_store.manifest import PromptSet
from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from robustclip.models.explanation import Explanation, explain
from robustclip.models.prompts import LEARNED_TEMPLATE, Prompts
from robustclip.models.vocabulary import word_ids

LABELS = ("cat", "dog", "fish")


def explained(clip: Clip, prompt_set: PromptSet, **options: Any) -> Explanation:
    ref, learned_on = str(prompt_set.ref), prompt_set.manifest.labels
    return explain(clip, prompt_set.prompts, name=ref, learned_on=learned_on, **options)


def spelled(clip: Clip, *words: str) -> PromptSet:
    """A set whose vectors are the embeddings of words, a second layer of zeros below them."""
    demo = learned_set(clip, labels=LABELS)
    table = clip.model.token_embedding.weight.detach()
    first = torch.stack([table[word_ids()[word]] for word in words])
    return PromptSet(
        demo.manifest, Prompts(torch.stack([first, torch.zeros_like(first)]), None, (LEARNED_TEMPLATE,))
    )


def own_contexts(clip: Clip, text: torch.Tensor) -> PromptSet:
    """A set with a context for each of its labels, and two layers of visual vectors."""
    demo = learned_set(clip, labels=LABELS, visual=True)
    prompts = Prompts(text, demo.prompts.visual, (LEARNED_TEMPLATE,), class_specific=True)
    return PromptSet(demo.manifest.model_copy(update={"class_specific": True}), prompts)


def test_a_vector_that_is_a_word_is_read_as_that_word(tiny: Clip) -> None:
    found = explained(tiny, spelled(tiny, "photo", "of"), words=3)
    first = [vector for vector in found.vectors if vector.layer == 1]
    assert (
        [vector.by_cosine[0].word for vector in first]
        == [vector.by_distance[0].word for vector in first]
        == ["photo", "of"]
    )
    assert all(
        vector.by_cosine[0].cosine > 0.9999 and vector.by_distance[0].distance < 0.01 for vector in first
    )
    assert all(len(vector.by_cosine) == len(vector.by_distance) == 3 for vector in first)
    assert all(vector.by_cosine[0].cosine >= vector.by_cosine[1].cosine for vector in first)


def test_deeper_and_visual_vectors_have_a_length_and_no_words(tiny: Clip) -> None:
    deeper = [vector for vector in explained(tiny, spelled(tiny, "photo", "of")).vectors if vector.layer == 2]
    assert [(vector.norm, vector.by_cosine) for vector in deeper] == [(0.0, ())] * 2
    both = explained(tiny, learned_set(tiny, visual=True)).vectors
    assert [vector.tower for vector in both] == ["text"] * 4 + ["image"] * 6


def test_lengths_stand_beside_those_of_the_table(tiny: Clip) -> None:
    found = explained(tiny, spelled(tiny, "photo"))
    low, middle, high = found.table_norms
    assert 0 < low < middle < high
    assert low / 2 < found.vectors[0].norm < 2 * high


def test_vectors_count_as_readable_where_a_word_is_nearer_than_words_are_to_each_other(tiny: Clip) -> None:
    words = explained(tiny, spelled(tiny, "photo", "of"))
    low, middle, high = words.table_distances
    assert 0 < low < middle < high
    assert words.readable() == (2, 2)
    assert "2 of 2 vectors in the text tower's first layer are nearer to a word" in words.summary()[1]
    assert "Lengths of words in tiny's table" in words.summary()[0]
    assert explained(tiny, learned_set(tiny, labels=LABELS)).readable() == (0, 4)


def test_words_alone_are_as_similar_to_the_handcrafted_ones_as_they_are_equal(tiny: Clip) -> None:
    same = explained(tiny, template_set("a photo of a {}."), labels=LABELS)
    assert (same.vectors, same.summary(), len(same.tables())) == ((), (), 1)
    assert [(label.label, label.reads_as) for label in same.labels] == [(name, name) for name in LABELS]
    assert all(label.similarity == pytest.approx(1, abs=1e-5) for label in same.labels)
    other = explained(tiny, template_set("art of the {}."), labels=LABELS)
    assert all(label.similarity < 0.9999 for label in other.labels)
    assert all(label.reads_as_similarity >= label.similarity for label in other.labels)


def test_tables_and_json_hold_the_same(tiny: Clip) -> None:
    found = explained(tiny, spelled(tiny, "photo", "of"))
    assert Explanation.model_validate_json(found.model_dump_json()) == found
    vectors, labels = found.tables()
    assert vectors[2].endswith("4 of 4 vectors, nearest to a word first")
    assert len(vectors[1]) == 4
    nearest = {row[5].partition(",")[0] for row in vectors[1][:2]}  # both at distance 0, in either order
    assert nearest == {"photo 1.00", "of 1.00"}
    assert {row[0] for row in labels[1]} == set(LABELS)


def test_a_context_of_a_label_is_called_by_it_and_the_readable_ones_come_first(tiny: Clip) -> None:
    dog = tiny.model.token_embedding.weight.detach()[word_ids()["dog"]]
    text = torch.randn(3, 2, 1, tiny.text_width, generator=torch.Generator().manual_seed(0))
    text[1, 0, 0] = dog + 0.01
    text[2, 0, 0] = dog
    found = explained(tiny, own_contexts(tiny, text))
    assert [(vector.tower, vector.context, vector.label) for vector in found.vectors[::2]] == [
        *(("text", index, label) for index, label in enumerate(LABELS)),
        *[("image", 0, None)] * 3,
    ]
    assert found.model_dump(mode="json")["vectors"][2]["label"] == "dog"
    heads, rows, _ = found.tables()[0]
    assert heads[1] == "label"
    assert [row[:4] for row in rows] == [
        *(("text", label, "1", "0") for label in ("fish", "dog", "cat")),
        *(("text", label, "2", "0") for label in LABELS),
        *(("image", "", str(layer), str(place)) for layer in (1, 2) for place in range(3)),
    ]


def test_people_see_twenty_rows_unless_they_ask_for_all(tiny: Clip) -> None:
    text = torch.randn(3, 2, 4, tiny.text_width, generator=torch.Generator().manual_seed(0))
    found = explained(tiny, own_contexts(tiny, text))
    some, every = found.tables()[0], found.tables(every=True)[0]
    assert some[2].endswith("20 of 30 vectors, nearest to a word first")
    assert every[2].endswith("30 of 30 vectors, nearest to a word first")
    assert (some[1], len(every[1])) == (every[1][:20], 30)
    assert some[1][0][5]
    both = learned_set(tiny, visual=True)
    images = explained(
        tiny, PromptSet(both.manifest, Prompts(None, both.prompts.visual, (LEARNED_TEMPLATE,)))
    )
    assert images.tables()[0][2].endswith("6 of 6 vectors")
    assert len(images.summary()) == 1
    many = explained(tiny, template_set("a {}."), labels=[f"thing {number}" for number in range(25)])
    assert [len(many.tables(every=every)[0][1]) for every in (False, True)] == [20, 25]


def test_what_can_not_be_read_is_refused_by_name(tiny: Clip) -> None:
    with pytest.raises(InvalidInput, match="--labels"):
        explained(tiny, template_set("a {}."))
    with pytest.raises(InvalidInput, match="--words"):
        explained(tiny, spelled(tiny, "photo"), words=0)
    with pytest.raises(InvalidInput, match="labels"):
        explained(tiny, spelled(tiny, "photo"), labels=["cat", "cat"])
    own = own_contexts(tiny, torch.zeros(3, 1, 2, tiny.text_width))
    assert len(explained(tiny, own).vectors) == 6 + 6
    with pytest.raises(InvalidInput, match="its own labels"):
        explained(tiny, own, labels=["cat", "dog"])
