"""Text as memory-mapped tokens: four sources behind one string, splits over workers, and batches without a cursor.

``load_corpus("stdlib")`` reads, tokenises and caches a corpus; ``split_windows`` deals its windows to workers;
``Batches`` turns (worker, step) into tensors. Importing this package needs numpy alone: Hugging Face ``datasets`` is
imported only to build a corpus that is not in the cache, ``torch`` only to make batches.
"""

from lab.data.cache import Corpus, Tokens, load_corpus
from lab.data.corpora import CORPORA
from lab.data.splits import (
    Batches,
    count_windows,
    split_windows,
    validation_batches,
    validation_windows,
    window_domains,
)
from lab.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "CORPORA",
    "Batches",
    "Corpus",
    "Tokenizer",
    "Tokens",
    "count_windows",
    "load_corpus",
    "load_tokenizer",
    "split_windows",
    "validation_batches",
    "validation_windows",
    "window_domains",
]
