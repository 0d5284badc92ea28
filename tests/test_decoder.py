"""The decoder learns what it is shown, and its two ways of running agree."""

import torch
import torch.nn.functional as F

from captionmill.data.vocabulary import Vocabulary
from captionmill.stages.decoding.decoder import Decoder, DecoderConfig
from captionmill.stages.decoding.search import search_captions

CAPTIONS = [
    "a dog runs on the beach",
    "a dog runs on the grass",
    "two men climb a rock",
    "a girl in a red dress",
    "snow",
    "the dog the dog the dog",
]


def build_decoder(vocab_size: int, *, dropout: float = 0.0) -> Decoder:
    torch.manual_seed(1)
    return Decoder(DecoderConfig(feature_dim=16, vocab_size=vocab_size, embed_dim=32, hidden_dim=64, dropout=dropout))


def test_a_decoder_overfits_six_captions_exactly() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    decoder = build_decoder(len(vocabulary))
    features = torch.randn(6, 16)
    encoded = [[1, *vocabulary.encode(caption), 2] for caption in CAPTIONS]
    words = torch.tensor([row + [0] * (9 - len(row)) for row in encoded])
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    for _ in range(120):
        logits = decoder(features, words[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    for beam_size in (1, 3):
        decoded = search_captions(decoder, features, beam_size=beam_size, max_length=10)
        assert [vocabulary.decode(caption.words) for caption in decoded] == CAPTIONS
        assert all(caption.confidence > 0.9 and not caption.cut for caption in decoded)


def test_stepping_gives_the_logits_of_teacher_forcing() -> None:
    decoder = build_decoder(11, dropout=0.5).eval()
    features, words = torch.randn(3, 16), torch.randint(4, 11, (3, 5))
    expected = decoder(features, words)
    state = decoder.start(features)
    for step in range(5):
        logits, state = decoder.step(words[:, step], state)
        torch.testing.assert_close(logits, expected[:, step])


def test_the_initial_state_depends_on_the_direction_of_the_features_only() -> None:
    decoder = build_decoder(11).eval()
    features = torch.randn(2, 16)
    hidden, cell = decoder.start(features)
    assert hidden.shape == cell.shape == (1, 2, 64)
    torch.testing.assert_close(decoder.start(10 * features)[0], hidden)
    assert not torch.equal(hidden[0, 0], hidden[0, 1])
