"""Captioning speed: the batched search against one image at a time, and against the matrix products that it needs.

python benchmarks/caption.py FEATURES MODEL FLICKR8K [--images 2000] [--rounds 3]

FEATURES is the store that benchmarks/flickr8k.py makes, MODEL what `captionmill train` made of it, FLICKR8K as there.
Everything runs in one process, by turns; the fastest of the rounds counts. Core-seconds are the processor time of the
process over all cores: they can be compared even when other programs run at the same time. The plain search is what
tutorials write: a loop over images, each with its own beam, log_softmax and topk over all words; captions that have
ended leave the beam. The matrix products are those of the same decoder steps, with the same numbers of rows, and
nothing else: first all of the decoder's layers, then those that remain when the search has folded it. Only the rows
that say so re-rank. The last table shows what bf16 would change in the captions of the dev images: weights, inputs and
outputs of each layer rounded to bf16, sums in fp32, as AMX does; the logits rounded too, or left as they are summed.
"""

import argparse
import copy
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line sets it

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionmill.data.captions.references import read_annotations, read_split_list
from captionmill.data.captions.vocabulary import END, START
from captionmill.data.features.store import FeatureStore
from captionmill.stages.decoding.captioner import Captioner, CaptionFinder, decode_rows
from captionmill.stages.decoding.decoder import Decoder, TorchSteps
from captionmill.stages.scoring.metrics import CiderD
from captionmill.stages.scoring.tokens import tokenize_ptb
from captionmill.stages.settings import SearchConfig

Product = tuple[Tensor, int]
"""A weight matrix [out, in] and the number of rows [rows, in] that it is multiplied with."""
SEARCHES = {
    "greedy": SearchConfig(beam_size=1, rerank="none"),
    "beam 3": SearchConfig(beam_size=3, rerank="none"),
}
RERANKED = {f"re-ranked, {count} candidates": SearchConfig(rerank="both", candidates=count) for count in (10, 20, 50)}


@torch.no_grad()
def plain_search(decoder: Decoder, row: Tensor, beam_size: int, max_length: int) -> list[int]:
    """The caption of one image, features [D], as tutorials search it."""
    state = tuple(part.repeat_interleave(beam_size, dim=1) for part in decoder.start(row.unsqueeze(0)))
    words = torch.full((beam_size, 1), START)
    sums = torch.zeros(beam_size, 1)
    ended: list[tuple[float, list[int]]] = []
    for step in range(max_length):
        logits, state = decoder.step(words[:, -1], state)
        scores = sums + F.log_softmax(logits, dim=1)
        best, chosen = (scores[0] if step == 0 else scores.view(-1)).topk(beam_size, dim=0)
        parents, next_words = chosen // logits.shape[1], chosen % logits.shape[1]
        words = torch.cat([words[parents], next_words.unsqueeze(1)], dim=1)
        going_on = [place for place, word in enumerate(next_words) if word != END]
        ended += [(best[place].item(), words[place].tolist()) for place in range(beam_size) if place not in going_on]
        beam_size = len(going_on)
        if not beam_size:
            break
        words, sums = words[going_on], best[going_on].unsqueeze(1)
        state = tuple(part[:, parents[going_on]] for part in state)
    return max(ended)[1] if ended else words[0].tolist()


def record_products(decoder: Decoder, decode: Callable[[], object]) -> list[Product]:
    """The matrix products that `decode` has `decoder` do."""
    products: list[Product] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        products.extend((weight, len(inputs[0])) for weight in module.parameters() if weight.dim() == 2)

    layers = [module for module in decoder.modules() if isinstance(module, nn.Linear | nn.LSTM)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    decode()
    for hook in hooks:
        hook.remove()
    return products


@torch.inference_mode()
def run_products(products: list[Product]) -> None:
    """These products and nothing else, of inputs that are at hand."""
    most = max(rows for _, rows in products)
    inputs = {size: torch.randn(most, size) for size in {weight.shape[1] for weight, _ in products}}
    for weight, rows in products:
        F.linear(inputs[weight.shape[1]][:rows], weight)


def fold_products(decoder: Decoder, products: list[Product]) -> list[Product]:
    """What is left of these products when words are looked up and the logits are made from the hidden state at once."""
    left_out = [decoder.lstm.weight_ih_l0]
    if decoder.config.tie_weights:
        left_out.append(decoder.to_embedding.weight)
    to_logits = torch.randn(decoder.config.vocab_size, decoder.config.hidden_dim)
    return [
        (to_logits if weight is decoder.to_logits.weight else weight, rows)
        for weight, rows in products
        if all(weight is not other for other in left_out)
    ]


def round_like_bf16(decoder: Decoder, *, with_logits: bool) -> Decoder:
    """A copy that gives what bf16 would, on any machine and no faster."""
    rounded = copy.deepcopy(decoder)

    def to_bf16(value: Any) -> Any:
        return value.bfloat16().float() if isinstance(value, Tensor) else tuple(map(to_bf16, value))

    for parameter in rounded.parameters():
        parameter.data = to_bf16(parameter.data)
    for module in rounded.modules():
        if isinstance(module, nn.Linear | nn.LSTM | nn.Embedding) and (with_logits or module is not rounded.to_logits):
            module.register_forward_hook(lambda module, inputs, output: to_bf16(output))
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda module, inputs: to_bf16(inputs))
    return rounded


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of all cores together."""
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - cpu_started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument(
        "--reranked-images", type=int, default=500, help="that are captioned with re-ranking in a round"
    )
    parser.add_argument("--plain-images", type=int, default=60, help="that the plain search captions in a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    store = FeatureStore.open(arguments.features)
    captioner = Captioner.load(arguments.model, device="cpu")
    decoder = captioner.decoder
    if not isinstance(decoder, Decoder):
        raise SystemExit("one model, not an ensemble")
    keys = store.keys[: arguments.images]

    def decode(search: SearchConfig, keys: list[str] = keys) -> dict[str, str]:
        return {key: caption.text for key, caption in captioner.captions(store, keys, search)}

    @torch.inference_mode()
    def decode_by_layers(search: SearchConfig, keys: list[str], decoder: Decoder) -> dict[str, str]:
        """As on a GPU: the decoder's layers one after the other, in torch."""
        finder = CaptionFinder(TorchSteps(decoder.eval()), captioner.vocabulary, search)
        return {key: caption.text for key, caption in decode_rows(finder, store, keys)}

    plain_keys = keys[: arguments.plain_images]

    def search_plainly() -> None:
        for key in plain_keys:
            plain_search(decoder, torch.from_numpy(store[key]).float(), 3, SEARCHES["beam 3"].longest)

    works: dict[str, tuple[int, Callable[[], object]]] = {"plain, beam 3": (len(plain_keys), search_plainly)}
    for name, search in SEARCHES.items():
        products = record_products(decoder, functools.partial(decode_by_layers, search, keys, decoder))
        folded = fold_products(decoder, products)
        works[f"captionmill, {name}"] = (len(keys), functools.partial(decode, search))
        works[f"the layers' matrix products, {name}"] = (len(keys), functools.partial(run_products, products))
        works[f"those left when folded, {name}"] = (len(keys), functools.partial(run_products, folded))
    reranked_keys = keys[: arguments.reranked_images]
    for name, search in RERANKED.items():
        works[f"captionmill, {name}"] = (len(reranked_keys), functools.partial(decode, search, reranked_keys))
    best = dict.fromkeys(works, (0.0, 0.0))
    for _ in range(arguments.rounds):
        for name, (count, work) in works.items():
            rates = [count / spent for spent in measure(work)]
            best[name] = (max(best[name][0], rates[0]), max(best[name][1], rates[1]))
    print("| | images/s | x plain | images per core-second | x plain |\n|---|---|---|---|---|")
    for name, rate in best.items():
        times = [mine / plain for mine, plain in zip(rate, best["plain, beam 3"], strict=True)]
        print(f"| {name} | {rate[0]:,.0f} | {times[0]:.1f} | {rate[1]:,.0f} | {times[1]:.1f} |", flush=True)
    print()
    for name in SEARCHES:
        for limit in ("the layers' matrix products", "those left when folded"):
            shares = [
                mine / most for mine, most in zip(best[f"captionmill, {name}"], best[f"{limit}, {name}"], strict=True)
            ]
            print(f"{name}: {shares[0]:.0%} of the rate of {limit}, {shares[1]:.0%} by core-seconds", flush=True)

    seconds = min(measure(lambda: store.verify(keys))[0] for _ in range(arguments.rounds))
    share = seconds * best["captionmill, greedy"][0] / len(keys)
    print(f"reading the rows and comparing them with their checksums: {share:.1%} of the time of greedy", flush=True)

    dev_keys = read_split_list(arguments.flickr8k / "Flickr_8k.devImages.txt")
    captions = read_annotations(arguments.flickr8k / "Flickr8k.token.txt").captions
    scorer = CiderD({key: [tokenize_ptb(text) for text in captions[key]] for key in dev_keys})

    def cider(texts: dict[str, str]) -> float:
        return float(scorer.scores({key: tokenize_ptb(text) for key, text in texts.items()}).mean())

    print("\n| | captions that bf16 changes | CIDEr-D, fp32 | CIDEr-D, bf16 |\n|---|---|---|---|")
    for name, search in SEARCHES.items():
        exact = decode(search, dev_keys)
        for what, with_logits in (("", True), (", logits in fp32", False)):
            rounded = decode_by_layers(search, dev_keys, round_like_bf16(decoder, with_logits=with_logits))
            changed = sum(exact[key] != rounded[key] for key in dev_keys)
            scores = f"{cider(exact):.4f} | {cider(rounded):.4f}"
            print(f"| {name}{what} | {changed} of {len(dev_keys)} | {scores} |", flush=True)


if __name__ == "__main__":
    main()
