// The matrix product, C[m, n] = Σ_k A[m, k] B[k, n], and the layouts of its operands.
//
//   rows    [R][C / per]            words along the columns: A, reduced over columns
//   pairs   [R / per][C]            words along the rows: A or B, reduced over rows
//   panels  [C_out / 16][K][16]     B, for the transpose of a matrix (C_out, K · per) in rows: reduced over its columns
//
// Every element of C is one chain of additions in the order of k, whatever the sizes of tiles and of the batch: a row of
// the result depends on that row of A and on B alone, bit for bit.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace lt {

// Word (m, k) of A lies at base[m · row + k · step].
struct Left {
    const Word* base;
    long row, step;
};

// The 16 words (k, 16 p … 16 p + 15) of B lie at base[k · step + p · panel].
struct Right {
    const Word* base;
    long step, panel;
};

// Operands in the three layouts. ``width``: words (rows), columns (pairs) or reduced words (panels).
inline Left by_rows(const void* base, long width) { return {(const Word*)base, width, 1}; }
inline Left by_pairs(const void* base, long width) { return {(const Word*)base, 1, width}; }
inline Right of_pairs(const void* base, long width) { return {(const Word*)base, width, 16}; }
inline Right of_panels(const void* base, long words) { return {(const Word*)base, 16, 16 * words}; }

#if defined(LT_AVX512) || defined(LT_AVX2)

#if defined(LT_AVX512)
constexpr int TILE_ROWS = 6, TILE_PANELS = 4;  // 24 sums, 4 of B, 1 of A: 29 of 32 registers
#else
constexpr int TILE_ROWS = 2, TILE_PANELS = 2;  // 8 half sums, 2 of B, 4 of A: 14 of 16 registers
#endif

template <class E, int M, int P, class Out>
inline void tile(Left a, Right b, long words, long m, long p, Out& out) {
    Lanes c[M][P];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < P; j++) c[i][j] = out.start(m + i, p + j);
    const Word* left = a.base + m * a.row;
    const Word* right = b.base + p * b.panel;
    for (long k = 0; k < words; k++) {
        Words y[P];
        for (int j = 0; j < P; j++) y[j] = load(right + j * b.panel);
        for (int i = 0; i < M; i++) {
            Words x = all(left[i * a.row]);
            for (int j = 0; j < P; j++) c[i][j] = E::dot(c[i][j], x, y[j]);
        }
        left += a.step;
        right += b.step;
    }
    for (int i = 0; i < M; i++) out.template finish<P>(m + i, p, c[i]);
}

// The rows m … rows - 1 against P panels; tall tiles first.
template <class E, int M, int P, class Out>
inline void strip(Left a, Right b, long words, long m, long rows, long p, Out& out) {
    for (; m + M <= rows; m += M) tile<E, M, P>(a, b, words, m, p, out);
    if constexpr (M > 1) {
        if (m < rows) strip<E, M - 1, P>(a, b, words, m, rows, p, out);
    }
}

constexpr long BLOCK = 96;  // rows of A that stay in the cache while they meet all of B

template <class E, class Out>
void product(Left a, Right b, long rows, long panels, long words, Out out) {
    for (long m = 0; m < rows; m += BLOCK) {
        const long end = std::min(rows, m + BLOCK);
        long p = 0;
#if defined(LT_AVX512)
        if (rows <= 2)  // few rows: wide tiles hide the latency of the sums
            for (; p + 8 <= panels; p += 8) strip<E, 2, 8>(a, b, words, m, end, p, out);
#endif
        for (; p + TILE_PANELS <= panels; p += TILE_PANELS) strip<E, TILE_ROWS, TILE_PANELS>(a, b, words, m, end, p, out);
        for (; p + 2 <= panels; p += 2) strip<E, TILE_ROWS, 2>(a, b, words, m, end, p, out);
        for (; p < panels; p++) strip<E, TILE_ROWS, 1>(a, b, words, m, end, p, out);
    }
}

#else  // the same sums in plain loops

template <class E, class Out>
void product(Left a, Right b, long rows, long panels, long words, Out out) {
    for (long p = 0; p < panels; p += 2)  // by twos, for results that need neighbours (gate and up)
        for (long m = 0; m < rows; m++) {
            Lanes c[2];
            int count = p + 1 < panels ? 2 : 1;
            for (int j = 0; j < count; j++) {
                c[j] = out.start(m, p + j);
                for (long k = 0; k < words; k++)
                    c[j] = E::dot(c[j], all(a.base[m * a.row + k * a.step]), load(b.base + k * b.step + (p + j) * b.panel));
            }
            if (count == 2) out.template finish<2>(m, p, c);
            else out.template finish<1>(m, p, c);
        }
}

#endif

// Where results go. ``start`` is what the sums begin with; ``finish`` stores P neighbouring panels of row m.

template <class T>
struct Put {  // C = A B (+ bias)
    T* c;
    long width;
    const float* bias = nullptr;
    Lanes start(long, long p) const { return bias ? load(bias + 16 * p) : zero(); }
    template <int P> void finish(long m, long p, const Lanes* x) const {
        for (int j = 0; j < P; j++) store(c + m * width + 16 * (p + j), x[j]);
    }
};

struct Add {  // C = from + A B (+ bias)
    float* c;
    long width;
    const float* from;
    const float* bias = nullptr;
    Add(float* c, long width, const float* from = nullptr, const float* bias = nullptr)
        : c(c), width(width), from(from ? from : c), bias(bias) {}
    Lanes start(long, long p) const { return bias ? load(bias + 16 * p) : zero(); }
    template <int P> void finish(long m, long p, const Lanes* x) const {
        const long at = m * width + 16 * p;
        for (int j = 0; j < P; j++) store(c + at + 16 * j, load(from + at + 16 * j) + x[j]);
    }
};

// Panels alternate between gate and up: silu(gate) · up, and the two themselves if a backward pass will want them.
template <class T>
struct Swiglu {
    T* out;
    long width;
    T* both = nullptr;  // (rows, 2 · width), panels in their order
    const float* bias = nullptr;
    Lanes start(long, long p) const { return bias ? load(bias + 16 * p) : zero(); }
    template <int P> void finish(long m, long p, const Lanes* x) const {
        static_assert(P % 2 == 0 || P == 1);
        if constexpr (P > 1) {
            for (int j = 0; j < P; j += 2) {
                if (both)
                    for (int i = 0; i < 2; i++) store(both + m * 2 * width + 16 * (p + j + i), x[j + i]);
                store(out + m * width + 8 * (p + j), x[j] * sigmoid(x[j]) * x[j + 1]);
            }
        }
    }
};

constexpr long REDUCED = 512;  // words of one sum before it is added to the result

// Layouts. (R, C) in rows, ``stride`` items apart, of floats or of items.

template <class E, class T>
void to_rows(const T* x, long rows, long columns, long stride, typename E::Item* out) {
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < columns; c += 16) store(out + r * columns + c, load(x + r * stride + c));
}

template <class E, class T>
void to_pairs(const T* x, long rows, long columns, long stride, Word* out) {  // an odd last row is paired with zeros
    for (long r = 0; r < rows; r += E::per, out += columns)
        for (long c = 0; c < columns; c += 16) {
            const T* at = x + r * stride + c;
            if constexpr (E::per == 1) store((float*)out + c, load(at));
            else store(out + c, pair(load(at), r + 1 < rows ? load(at + stride) : zero()));
        }
}

template <class E, class T>
void to_panels(const T* x, long rows, long columns, long stride, Word* out) {  // missing rows of the last panel: zeros
    using Item = typename E::Item;
    const long words = columns / E::per;
    std::vector<Item> narrowed(std::is_same_v<T, Item> ? 0 : 16 * columns);
    std::vector<Word> nothing(rows % 16 ? words : 0, 0);
    for (long r = 0; r < rows; r += 16, out += 16 * words) {
        const Word* from[16];
        for (long i = 0; i < 16; i++) {
            const T* row = x + (r + i) * stride;
            if (r + i >= rows) {
                from[i] = nothing.data();
            } else if constexpr (std::is_same_v<T, Item>) {
                from[i] = (const Word*)row;
            } else {
                Item* to = narrowed.data() + i * columns;
                for (long c = 0; c < columns; c += 16) store(to + c, load(row + c));
                from[i] = (const Word*)to;
            }
        }
        for (long w = 0; w < words; w++)
            for (long i = 0; i < 16; i++) out[16 * w + i] = from[i][w];
    }
}

}  // namespace lt
