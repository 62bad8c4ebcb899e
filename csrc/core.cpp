// The C interface. Every function ends with 0 or a status of generate.h; ``narrow`` chooses bf16 words over float32 ones.

#include "attention.h"
#include "decoder.h"
#include "experts.h"
#include "feedforward.h"
#include "generate.h"
#include "head.h"
#include "pointwise.h"
#include "product.h"
#include "session.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Does something with E as the kind of word that is wanted, and gives the status.
#define WITH_WORDS(narrow, ...)           \
    do {                                  \
        try {                             \
            if (narrow) {                 \
                using E = BF16;           \
                __VA_ARGS__;              \
            } else {                      \
                using E = F32;            \
                __VA_ARGS__;              \
            }                             \
        } catch (const std::bad_alloc&) { \
            return NO_MEMORY;             \
        }                                 \
        return DONE;                      \
    } while (0)

using namespace lt;

#ifndef LT_SOURCES
#define LT_SOURCES "unknown"
#endif

EXPORT const char* lt_sources() { return LT_SOURCES; }

// What this processor can run beyond plain code: 1 for AVX2, 2 for AVX-512 with BF16.
EXPORT int lt_supported() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bf16");
    return (avx2 ? 1 : 0) | (avx2 && avx512 ? 2 : 0);
#else
    return 0;
#endif
}

// Layouts of a float32 matrix, or of a bf16 one (wide = 0), (rows, columns) with ``stride`` items between rows.
// kind 0: rows, 1: pairs, 2: panels. ``every``, ``first``: panels (or the rows that make one) that are filled of every so many.
EXPORT int lt_pack(int narrow, int wide, int kind, const void* x, int64_t rows, int64_t columns, int64_t stride,
                   int64_t every, int64_t first, void* out) {
    WITH_WORDS(narrow, {
        auto put = [&](auto* from) {
            using Item = typename E::Item;
            if (kind == 0) return to_rows<E>(from, rows, columns, stride, (Item*)out);
            if (every == 1) {
                if (kind == 1) to_pairs<E>(from, rows, columns, stride, (Word*)out);
                else to_panels<E>(from, rows, columns, stride, (Word*)out);
                return;
            }
            const long words = 16 * columns / E::per;
            for (long r = 0; r < rows; r += 16) {
                Word* to = (Word*)out + (r / 16 * every + first) * words;
                if (kind == 1) to_pairs<E>(from + r * stride, std::min(16L, long(rows - r)), columns, stride, to);
                else to_panels<E>(from + r * stride, std::min(16L, long(rows - r)), columns, stride, to);
            }
        };
        if (wide) put((const float*)x);
        else put((const bf16*)x);
    });
}

// C (rows, panels · 16) = A B. left 0: A in rows, 1: in pairs; right 1: B in pairs, 2: in panels; widths as ``by_rows`` …
// say. result 0: float32, 1: items, 2: float32, added to ``from`` (or to ``out``).
EXPORT int lt_product(int narrow, int left, const void* a, int64_t a_width, int right, const void* b, int64_t b_width,
                      int64_t rows, int64_t panels, int64_t words, int result, void* out, int64_t width,
                      const float* bias, const float* from) {
    WITH_WORDS(narrow, {
        using Item = typename E::Item;
        Left x = left ? by_pairs(a, a_width) : by_rows(a, a_width);
        Right y = right == 1 ? of_pairs(b, b_width) : of_panels(b, b_width);
        if (result == 1) return product<E>(x, y, rows, panels, words, Put<Item>{(Item*)out, width, bias}), int(DONE);
        for (long k = 0; k < words; k += REDUCED) {
            const long some = std::min(REDUCED, long(words - k));
            const Left a_part = {x.base + k * x.step, x.row, x.step};
            const Right b_part = {y.base + k * y.step, y.step, y.panel};
            if (result == 0 && k == 0) product<E>(a_part, b_part, rows, panels, some, Put<float>{(float*)out, width, bias});
            else product<E>(a_part, b_part, rows, panels, some, Add((float*)out, width, k ? nullptr : from, k ? nullptr : bias));
        }
    });
}

EXPORT int lt_rms_norm(int narrow, const float* x, const float* g, float eps, int64_t rows, int64_t width, void* y,
                       float* inverse) {
    WITH_WORDS(narrow, rms_norm(x, g, eps, rows, width, (typename E::Item*)y, inverse));
}

EXPORT int lt_rms_norm_backward(int narrow, const float* x, const float* g, const float* inverse, const float* dy,
                                int64_t rows, int64_t width, float* dx, float* dg, void* y_pairs, void* dx_rows,
                                void* dx_pairs) {
    WITH_WORDS(narrow, rms_norm_backward<E>(x, g, inverse, dy, rows, width, dx, dg, (Word*)y_pairs,
                                            (typename E::Item*)dx_rows, (Word*)dx_pairs));
}

EXPORT int lt_rotary(int narrow, const float* qkv, const int64_t* heads, const float* q_gain, const float* k_gain,
                     float eps, const float* cos, const float* sin, const int64_t* positions, int64_t rows, void* out) {
    WITH_WORDS(narrow, rotary(qkv, Heads{heads[0], heads[1], heads[2]}, q_gain, k_gain, eps, cos, sin, positions, rows,
                              (typename E::Item*)out));
}

EXPORT int lt_rotary_backward(int narrow, float* d, const float* qkv, const int64_t* heads, const float* q_gain,
                              const float* k_gain, float eps, const float* cos, const float* sin,
                              const int64_t* positions, int64_t rows, float* dq_gain, float* dk_gain, void* d_rows,
                              void* d_pairs) {
    WITH_WORDS(narrow, rotary_backward<E>(d, qkv, Heads{heads[0], heads[1], heads[2]}, q_gain, k_gain, eps, cos, sin,
                                          positions, rows, dq_gain, dk_gain, (typename E::Item*)d_rows, (Word*)d_pairs));
}

// Matrices in panels.
EXPORT int lt_feedforward(int narrow, const void* gate_up, const void* down, const float* gate_up_bias,
                          const float* down_bias, const void* h, const float* x, int64_t rows, int64_t width,
                          int64_t ffn, float* out, void* both) {
    WITH_WORDS(narrow, feedforward<E>(Gated{(const Word*)gate_up, (const Word*)down, gate_up_bias, down_bias, width, ffn},
                                      (const typename E::Item*)h, x, rows, out, (typename E::Item*)both));
}

// Matrices in pairs.
EXPORT int lt_feedforward_backward(int narrow, const void* gate_up, const void* down, const void* d_out,
                                   const void* both, int64_t rows, int64_t width, int64_t ffn, float* dh, void* d_both,
                                   void* a) {
    WITH_WORDS(narrow, {
        using Item = typename E::Item;
        feedforward_backward<E>(Gated{(const Word*)gate_up, (const Word*)down, nullptr, nullptr, width, ffn},
                                (const Item*)d_out, (const Item*)both, rows, dh, (Word*)d_both, (Word*)a);
    });
}

EXPORT int lt_attention(int narrow, const void* qkv, const int64_t* heads, const int64_t* start, const int64_t* length,
                        const int64_t* parent, int64_t segments, void* o, float* lse) {
    WITH_WORDS(narrow, {
        using Item = typename E::Item;
        const Heads h{heads[0], heads[1], heads[2]};
        attention<E>(qkv_of((const Item*)qkv, h), shape_of(h), Segments{start, length, parent, segments}, (Item*)o, lse);
    });
}

EXPORT int lt_attention_backward(int narrow, const void* qkv, const void* o, const void* d_o, const float* lse,
                                 const int64_t* heads, const int64_t* start, const int64_t* length,
                                 const int64_t* parent, int64_t segments, float* d) {
    WITH_WORDS(narrow, {
        using Item = typename E::Item;
        const Heads h{heads[0], heads[1], heads[2]};
        attention_backward<E>(qkv_of((const Item*)qkv, h), (const Item*)o, (const Item*)d_o, lse, shape_of(h),
                              Segments{start, length, parent, segments}, qkv_of(d, h));
    });
}

// Latent attention in its expanded form. heads: their number, own numbers of a key, shared ones, numbers of a value.
// q: (S, heads · key), kv: (S, heads · (own + value)), common: (S, shared).
EXPORT int lt_latent_attention(int narrow, const void* q, const void* kv, const void* common, const int64_t* heads,
                               float scale, const int64_t* start, const int64_t* length, const int64_t* parent,
                               int64_t segments, void* o, float* lse) {
    WITH_WORDS(narrow, {
        using Item = typename E::Item;
        const AttentionShape h{heads[0], heads[0], heads[1], heads[2], heads[3], scale};
        attention<E>(qkv_of((const Item*)q, (const Item*)kv, (const Item*)common, h), h,
                     Segments{start, length, parent, segments}, (Item*)o, lse);
    });
}

EXPORT int lt_latent_attention_backward(int narrow, const void* q, const void* kv, const void* common, const void* o,
                                        const void* d_o, const float* lse, const int64_t* heads, float scale,
                                        const int64_t* start, const int64_t* length, const int64_t* parent,
                                        int64_t segments, float* dq, float* d_kv, float* d_common) {
    WITH_WORDS(narrow, {
        using Item = typename E::Item;
        const AttentionShape h{heads[0], heads[0], heads[1], heads[2], heads[3], scale};
        attention_backward<E>(qkv_of((const Item*)q, (const Item*)kv, (const Item*)common, h), (const Item*)o,
                              (const Item*)d_o, lse, h, Segments{start, length, parent, segments},
                              qkv_of(dq, d_kv, d_common, h));
    });
}

// Of the columns from ``first`` on, of rows that are ``stride`` long.
EXPORT int lt_rms_norm_columns(int narrow, const float* x, int64_t stride, int64_t first, const float* g, float eps,
                               int64_t rows, int64_t width, void* y, float* inverse) {
    WITH_WORDS(narrow, rms_norm(x + first, g, eps, rows, width, (typename E::Item*)y, inverse, stride));
}

EXPORT int lt_rms_norm_columns_backward(int narrow, const float* x, int64_t stride, int64_t first, const float* g,
                                        const float* inverse, const float* dy, int64_t rows, int64_t width, float* dx,
                                        float* dg, void* y_pairs) {
    WITH_WORDS(narrow, rms_norm_backward<E>(x + first, g, inverse, dy, rows, width, dx + first, dg, (Word*)y_pairs,
                                            nullptr, nullptr, stride));
}

// tails: number of heads, their plain and their rotated numbers; from column ``first`` of x on.
EXPORT int lt_rotary_tails(int narrow, const float* x, int64_t stride, int64_t first, const int64_t* tails,
                           const float* cos, const float* sin, const int64_t* positions, int64_t rows, void* out) {
    const Tails h{tails[0], tails[1], tails[2]};
    WITH_WORDS(narrow, rotary_tails(x + first, stride, h, cos, sin, positions, 1.0f, rows, (typename E::Item*)out, h.all()));
}

// dx, from column ``first`` on, from d (rows, all of the heads).
EXPORT int lt_rotary_tails_backward(int narrow, const float* d, const int64_t* tails, const float* cos, const float* sin,
                                    const int64_t* positions, int64_t rows, float* dx, int64_t stride, int64_t first) {
    (void)narrow;  // the gradients are float32 in any case
    const Tails h{tails[0], tails[1], tails[2]};
    rotary_tails(d, h.all(), h, cos, sin, positions, -1.0f, rows, dx + first, stride);
    return DONE;
}

// Adds to out what the chosen experts say of h, and sorts the choices. shape: rows, choices of each, experts, width, ffn.
EXPORT int lt_experts(int narrow, const void* gate_up, const void* down, const void* h, const int64_t* chosen,
                      const float* gates, const int64_t* shape, int64_t* order, int64_t* first, float* out, void* both) {
    WITH_WORDS(narrow, {
        using Item = typename E::Item;
        by_expert(chosen, shape[0] * shape[1], shape[2], order, first);
        experts<E>(Gated{(const Word*)gate_up, (const Word*)down, nullptr, nullptr, shape[3], shape[4]},
                   Choices{order, first, gates, shape[2], shape[1]}, (const Item*)h, out, (Item*)both);
    });
}

EXPORT int lt_experts_backward(int narrow, const void* gate_up, const void* down, const void* d_out, const void* h,
                               const void* both, const float* gates, const int64_t* order, const int64_t* first,
                               const int64_t* shape, float* dh, float* d_gates, float* d_gate, float* d_up,
                               float* d_down) {
    WITH_WORDS(narrow, {
        using Item = typename E::Item;
        experts_backward<E>(Gated{(const Word*)gate_up, (const Word*)down, nullptr, nullptr, shape[3], shape[4]},
                            Choices{order, first, gates, shape[2], shape[1]}, (const Item*)d_out, (const Item*)h,
                            (const Item*)both, ExpertGradients{dh, d_gates, d_gate, d_up, d_down});
    });
}

EXPORT int lt_head(int narrow, const void* panels, int64_t vocabulary, int64_t width, float sharpness, const void* h,
                   const int64_t* targets, int64_t rows, float* logp, float* entropy, float* lse) {
    WITH_WORDS(narrow, head_forward<E>(Head{(const Word*)panels, nullptr, vocabulary, width, sharpness},
                                       (const typename E::Item*)h, targets, rows, logp, entropy, lse));
}

EXPORT int lt_head_backward(int narrow, const void* panels, const void* pairs, int64_t vocabulary, int64_t width,
                            float sharpness, const void* h, const int64_t* targets, const float* lse,
                            const float* entropy, const float* d_logp, const float* d_entropy, int64_t rows, float* dh,
                            float* dw) {
    WITH_WORDS(narrow, head_backward<E>(Head{(const Word*)panels, (const Word*)pairs, vocabulary, width, sharpness},
                                        (const typename E::Item*)h, targets, lse, entropy, d_logp, d_entropy, rows, dh, dw));
}

EXPORT int lt_generate(int narrow, const Decoder* decoder, const Request* request, Report report) {
    WITH_WORDS(narrow, return Generation<E>(*decoder, *request).run(report));
}

EXPORT void* lt_session_new(int narrow, const Decoder* decoder, int64_t slots, int64_t capacity, int threads) {
    return narrow ? (void*)new Session<BF16>(*decoder, slots, capacity, threads)
                  : (void*)new Session<F32>(*decoder, slots, capacity, threads);
}

EXPORT int lt_session_free(int narrow, void* session) {
    WITH_WORDS(narrow, delete (Session<E>*)session);
}

EXPORT int lt_session_admit(int narrow, void* session, const int32_t* tokens, const int64_t* offset, int64_t prompts,
                            const int64_t* slots, const int64_t* which, int64_t count, int16_t* choices) {
    WITH_WORDS(narrow, return ((Session<E>*)session)->admit(tokens, offset, prompts, slots, which, count, choices));
}

EXPORT int lt_session_next(int narrow, void* session, const int64_t* slots, const int64_t* tokens, const int64_t* taken,
                           int64_t count) {
    WITH_WORDS(narrow, ((Session<E>*)session)->next(slots, tokens, taken, count));
}

EXPORT int lt_session_ahead(int narrow, void* session, int64_t module, const int64_t* slots, const int64_t* drafts,
                            int64_t count, float* logits, uint8_t* told) {
    WITH_WORDS(narrow, return ((Session<E>*)session)->ahead(module, slots, drafts, count, logits, told));
}

EXPORT int lt_session_feed(int narrow, void* session, const int64_t* slots, const int64_t* drafts, int64_t count,
                           float* logits, int16_t* choices) {
    WITH_WORDS(narrow, return ((Session<E>*)session)->feed(slots, drafts, count, logits, choices));
}
