"""Counts to tokens: vocabulary, gene matching, value bins, selection. Numpy and numba only."""

from scanpy_scgpt._modalities import PEAK

from ._binning import TIES, bin_row_reference, bin_rows
from ._encode import Tokenizer, TokenizerConfig
from ._features import PROTEIN_PREFIX, kinds_of_tokens, match_peaks, peak_tokens, protein_tokens
from ._genes import GeneMatch, GeneMatchError, GeneTable, match_genes, require_enough
from ._hash import cell_keys, gene_draws
from ._select import SELECT
from ._tokens import Tokens
from ._vocab import CLS, EOC, PAD, SPECIAL_TOKENS, GeneVocab
from ._zeros import with_zeros

__all__ = [
    "CLS",
    "EOC",
    "PAD",
    "PEAK",
    "PROTEIN_PREFIX",
    "SELECT",
    "SPECIAL_TOKENS",
    "TIES",
    "GeneMatch",
    "GeneMatchError",
    "GeneTable",
    "GeneVocab",
    "Tokenizer",
    "TokenizerConfig",
    "Tokens",
    "bin_row_reference",
    "bin_rows",
    "cell_keys",
    "gene_draws",
    "kinds_of_tokens",
    "match_genes",
    "match_peaks",
    "peak_tokens",
    "protein_tokens",
    "require_enough",
    "with_zeros",
]
