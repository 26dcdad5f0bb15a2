"""llama.cpp by token ids, through the low-level functions of llama-cpp-python."""
import ctypes

import llama_cpp as lc
import numpy as np

lc.llama_backend_init()
SILENT = lc.llama_log_callback(lambda level, text, data: None)
lc.llama_log_set(SILENT, ctypes.c_void_p(0))


class Engine:
    """A model, perhaps with an adapter. Keys, values and sums are float32, and the whole text is one batch."""

    def __init__(self, path, adapter=None, n_ctx=512):
        self.model = lc.llama_model_load_from_file(str(path).encode(), lc.llama_model_default_params())
        assert self.model, f"llama.cpp does not load {path}"
        params = lc.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.type_k = params.type_v = 0
        params.n_threads = params.n_threads_batch = 2
        params.flash_attn_type = 0
        self.context = lc.llama_init_from_model(self.model, params)
        assert self.context
        self.vocab = lc.llama_model_get_vocab(self.model)
        if adapter:
            loaded = lc.llama_adapter_lora_init(self.model, str(adapter).encode())
            assert loaded, f"llama.cpp does not load {adapter}"
            adapters = (lc.llama_adapter_lora_p_ctypes * 1)(loaded)
            assert lc.llama_set_adapters_lora(self.context, adapters, 1, (ctypes.c_float * 1)(1.0)) == 0

    def logits(self, ids):
        """Logits after each token, (T, V)."""
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)
        batch = lc.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        assert lc.llama_decode(self.context, batch) == 0
        n = lc.llama_vocab_n_tokens(self.vocab)
        rows = [np.ctypeslib.as_array(lc.llama_get_logits_ith(self.context, i), shape=(n,)).copy() for i in range(len(ids))]
        lc.llama_batch_free(batch)
        return np.stack(rows).astype(np.float64)

    def logps(self, ids):
        """Log-probability of each token after the first."""
        logits = self.logits(ids)[:-1]
        top = logits.max(1, keepdims=True)
        logits = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        return logits[np.arange(len(ids) - 1), ids[1:]]

    def greedy(self, ids, n, stop):
        """Ids of the most probable continuation, at most n, without a token of `stop`."""
        ids, start = list(ids), len(ids)
        while len(ids) < start + n:
            token = int(self.logits(ids)[-1].argmax())
            if token in stop:
                break
            ids.append(token)
        return ids[start:]

    def tokenize(self, text):
        """Ids of a text in which special tokens are parsed, without BOS."""
        data = text.encode()
        ids = (lc.llama_token * (len(data) + 8))()
        n = lc.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, True)
        assert n >= 0
        return list(ids[:n])
