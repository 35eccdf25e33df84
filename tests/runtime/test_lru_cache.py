import numpy as np

from rism.runtime.lru_cache import LruCache


def kept(cache: LruCache[np.ndarray], names: str) -> str:
    return "".join(name for name in names if cache.get(name) is not None)


def test_the_longest_unused_goes_first() -> None:
    cache: LruCache[np.ndarray] = LruCache(2)
    cache.put("a", np.zeros(1))
    cache.put("b", np.ones(1))
    cache.get("a")
    cache.put("c", np.ones(1))
    assert kept(cache, "abc") == "ac"


def test_embeddings_of_a_real_model_do_not_fill_the_memory() -> None:
    cache: LruCache[np.ndarray] = LruCache(256, nbytes=100)
    for name in "abcd":
        cache.put(name, np.zeros(40, np.uint8))
    assert kept(cache, "abcd") == "cd"
    cache.put("d", np.zeros(90, np.uint8))  # larger than it was
    assert kept(cache, "abcd") == "d"
    cache.put("e", np.zeros(1000, np.uint8))  # larger than all that is allowed: still useful now
    assert kept(cache, "abcde") == "e"
    cache.put("f", np.zeros(40, np.uint8))
    cache.put("g", np.zeros(40, np.uint8))
    assert kept(cache, "efg") == "fg"
