// Sixteen floats at a time, in three instruction sets: AVX-512 with BF16, AVX2, and plain loops.
//
// A matrix is made of 32-bit words: one float (F32), or two neighbours along the reduced dimension (BF16). Both kinds
// of matrix then have the same layouts, and ``dot`` is the only place that knows what a word holds.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(LT_AVX512) || defined(LT_AVX2)
#include <immintrin.h>
#endif

namespace lt {

using Word = uint32_t;
using bf16 = uint16_t;

inline float widen(bf16 x) {
    Word bits = Word(x) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline bf16 narrow(float x) {  // to nearest, ties to even; NaN stays NaN
    Word bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return bf16(bits >> 16 | 0x40);
    return bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#if defined(LT_AVX512)

struct Lanes { __m512 v; };
struct Words { __m512i v; };

inline Lanes zero() { return {_mm512_setzero_ps()}; }
inline Lanes all(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Lanes x) { _mm512_storeu_ps(p, x.v); }
inline Lanes load(const bf16* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
inline void store(bf16* p, Lanes x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x.v)); }
inline Words pair(Lanes low, Lanes high) {  // two rows as the words of 16 columns
    __m512i a = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low.v));
    __m512i b = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high.v));
    return {_mm512_or_si512(a, _mm512_slli_epi32(b, 16))};
}
inline Lanes low(Words x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(x.v, 16))}; }  // the first of each pair
inline Words load(const Word* p) { return {_mm512_loadu_si512(p)}; }
inline void store(Word* p, Words x) { _mm512_storeu_si512(p, x.v); }
inline Words all(Word x) { return {_mm512_set1_epi32(int(x))}; }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes round(Lanes a) { return {_mm512_roundscale_ps(a.v, 0)}; }
inline Lanes scale2(Lanes a, Lanes n) { return {_mm512_scalef_ps(a.v, n.v)}; }  // a · 2ⁿ
inline Lanes swapped(Lanes a) { return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)}; }  // the upper eight first
inline Lanes inverse(Lanes a) {  // one Newton step behind 14 bits
    __m512 y = _mm512_rcp14_ps(a.v);
    return {_mm512_mul_ps(y, _mm512_fnmadd_ps(a.v, y, _mm512_set1_ps(2.0f)))};
}
inline Lanes first(Lanes a, long n) { return {_mm512_maskz_mov_ps(__mmask16((1u << n) - 1), a.v)}; }  // then zeros
inline float sum(Lanes a) { return _mm512_reduce_add_ps(a.v); }
inline float highest(Lanes a) { return _mm512_reduce_max_ps(a.v); }
inline Lanes dot_bf16(Lanes c, Words a, Words b) {
    return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v)};
}
inline Lanes dot_f32(Lanes c, Words a, Words b) {
    return {_mm512_fmadd_ps(_mm512_castsi512_ps(a.v), _mm512_castsi512_ps(b.v), c.v)};
}

#elif defined(LT_AVX2)

struct Lanes { __m256 a, b; };
struct Words { __m256i a, b; };

inline Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Lanes all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Lanes x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline __m256 half_of(const bf16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline Lanes load(const bf16* p) { return {half_of(p), half_of(p + 8)}; }
inline __m256i narrowed(__m256 x) {  // the upper halves, rounded; NaN stays NaN
    __m256i bits = _mm256_castps_si256(x), one = _mm256_set1_epi32(1);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd));
    __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    near = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(near), _mm256_castsi256_ps(quiet), nan));
    return _mm256_srli_epi32(near, 16);
}
inline __m128i packed(__m256i x) {
    return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
inline void store(bf16* p, Lanes x) {
    _mm_storeu_si128((__m128i*)p, packed(narrowed(x.a)));
    _mm_storeu_si128((__m128i*)(p + 8), packed(narrowed(x.b)));
}
inline Words pair(Lanes low, Lanes high) {
    return {_mm256_or_si256(narrowed(low.a), _mm256_slli_epi32(narrowed(high.a), 16)),
            _mm256_or_si256(narrowed(low.b), _mm256_slli_epi32(narrowed(high.b), 16))};
}
inline Words load(const Word* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
inline void store(Word* p, Words x) {
    _mm256_storeu_si256((__m256i*)p, x.a), _mm256_storeu_si256((__m256i*)(p + 8), x.b);
}
inline Words all(Word x) { return {_mm256_set1_epi32(int(x)), _mm256_set1_epi32(int(x))}; }
inline Lanes operator+(Lanes x, Lanes y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Lanes operator-(Lanes x, Lanes y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Lanes operator*(Lanes x, Lanes y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Lanes operator/(Lanes x, Lanes y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Lanes fma(Lanes x, Lanes y, Lanes z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Lanes max(Lanes x, Lanes y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Lanes min(Lanes x, Lanes y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Lanes round(Lanes x) { return {_mm256_round_ps(x.a, 0), _mm256_round_ps(x.b, 0)}; }
inline __m256 power2(__m256 n) {  // in two factors, so that subnormal results are right
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline __m256 scale2(__m256 x, __m256 n) {
    __m256 half = _mm256_round_ps(_mm256_mul_ps(n, _mm256_set1_ps(0.5f)), _MM_FROUND_FLOOR);
    return _mm256_mul_ps(_mm256_mul_ps(x, power2(half)), power2(_mm256_sub_ps(n, half)));
}
inline Lanes scale2(Lanes x, Lanes n) { return {scale2(x.a, n.a), scale2(x.b, n.b)}; }
inline Lanes swapped(Lanes x) { return {x.b, x.a}; }
inline Lanes first(Lanes x, long n) {
    const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256 a = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), place));
    __m256 b = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(int(n) - 8), place));
    return {_mm256_and_ps(x.a, a), _mm256_and_ps(x.b, b)};
}
inline Lanes inverse(Lanes x) { return all(1.0f) / x; }
inline float sum(Lanes x) {
    float v[8];
    _mm256_storeu_ps(v, _mm256_add_ps(x.a, x.b));
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
inline float highest(Lanes x) {
    float v[8], m;
    _mm256_storeu_ps(v, _mm256_max_ps(x.a, x.b));
    m = v[0];
    for (int i = 1; i < 8; i++) m = v[i] > m ? v[i] : m;
    return m;
}
inline __m256 low_of(__m256i w) { return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)); }
inline __m256 high_of(__m256i w) {
    return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(int(0xffff0000))));
}
inline __m256 dot_bf16(__m256 c, __m256i a, __m256i b) {
    return _mm256_fmadd_ps(low_of(a), low_of(b), _mm256_fmadd_ps(high_of(a), high_of(b), c));
}
inline Lanes dot_bf16(Lanes c, Words a, Words b) { return {dot_bf16(c.a, a.a, b.a), dot_bf16(c.b, a.b, b.b)}; }
inline Lanes low(Words x) { return {low_of(x.a), low_of(x.b)}; }
inline Lanes dot_f32(Lanes c, Words a, Words b) {
    return {_mm256_fmadd_ps(_mm256_castsi256_ps(a.a), _mm256_castsi256_ps(b.a), c.a),
            _mm256_fmadd_ps(_mm256_castsi256_ps(a.b), _mm256_castsi256_ps(b.b), c.b)};
}

#else  // plain loops: the portable path, and what the others are tested against

struct Lanes { float v[16]; };
struct Words { Word v[16]; };

#define LT_EACH(T, expression) \
    T out;                     \
    for (int i = 0; i < 16; i++) out.v[i] = (expression); \
    return out

inline float as_float(Word w) { float x; std::memcpy(&x, &w, 4); return x; }
inline Lanes all(float x) { LT_EACH(Lanes, x); }
inline Lanes zero() { return all(0.0f); }
inline Lanes load(const float* p) { LT_EACH(Lanes, p[i]); }
inline Lanes load(const bf16* p) { LT_EACH(Lanes, widen(p[i])); }
inline Words load(const Word* p) { LT_EACH(Words, p[i]); }
inline void store(float* p, Lanes x) { std::memcpy(p, x.v, sizeof x.v); }
inline void store(Word* p, Words x) { std::memcpy(p, x.v, sizeof x.v); }
inline void store(bf16* p, Lanes x) { for (int i = 0; i < 16; i++) p[i] = narrow(x.v[i]); }
inline Words pair(Lanes a, Lanes b) { LT_EACH(Words, Word(narrow(a.v[i])) | Word(narrow(b.v[i])) << 16); }
inline Words all(Word x) { LT_EACH(Words, x); }
inline Lanes low(Words x) { LT_EACH(Lanes, as_float(x.v[i] << 16)); }
inline Lanes operator+(Lanes a, Lanes b) { LT_EACH(Lanes, a.v[i] + b.v[i]); }
inline Lanes operator-(Lanes a, Lanes b) { LT_EACH(Lanes, a.v[i] - b.v[i]); }
inline Lanes operator*(Lanes a, Lanes b) { LT_EACH(Lanes, a.v[i] * b.v[i]); }
inline Lanes operator/(Lanes a, Lanes b) { LT_EACH(Lanes, a.v[i] / b.v[i]); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { LT_EACH(Lanes, a.v[i] * b.v[i] + c.v[i]); }
inline Lanes max(Lanes a, Lanes b) { LT_EACH(Lanes, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline Lanes min(Lanes a, Lanes b) { LT_EACH(Lanes, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline Lanes dot_bf16(Lanes c, Words a, Words b) {
    LT_EACH(Lanes, c.v[i] + as_float(a.v[i] & 0xffff0000) * as_float(b.v[i] & 0xffff0000)
                       + as_float(a.v[i] << 16) * as_float(b.v[i] << 16));
}
inline Lanes dot_f32(Lanes c, Words a, Words b) { LT_EACH(Lanes, c.v[i] + as_float(a.v[i]) * as_float(b.v[i])); }
inline Lanes swapped(Lanes a) { LT_EACH(Lanes, a.v[(i + 8) % 16]); }
inline Lanes first(Lanes a, long n) { LT_EACH(Lanes, i < n ? a.v[i] : 0.0f); }
inline Lanes inverse(Lanes a) { LT_EACH(Lanes, 1.0f / a.v[i]); }
inline float sum(Lanes a) {
    float s = 0;
    for (int i = 0; i < 16; i++) s += a.v[i];
    return s;
}
inline float highest(Lanes a) {
    float m = a.v[0];
    for (int i = 1; i < 16; i++) m = a.v[i] > m ? a.v[i] : m;
    return m;
}

#endif

// eˣ, to two units in the last place: x = n ln 2 + r, and a polynomial in r (Cephes). 0 below -87, no overflow guard.
#if defined(LT_AVX512) || defined(LT_AVX2)
inline Lanes exp(Lanes x) {
    x = max(all(-87.3f), min(all(88.72f), x));  // in this order NaN stays NaN
    Lanes n = round(x * all(1.44269504088896341f));
    Lanes r = fma(n, all(-0.693359375f), x);
    r = fma(n, all(2.12194440e-4f), r);
    Lanes p = all(1.9875691500e-4f);
    p = fma(p, r, all(1.3981999507e-3f));
    p = fma(p, r, all(8.3334519073e-3f));
    p = fma(p, r, all(4.1665795894e-2f));
    p = fma(p, r, all(1.6666665459e-1f));
    p = fma(p, r, all(5.0000001201e-1f));
    return scale2(fma(p * r, r, r + all(1.0f)), n);
}
#else
inline Lanes exp(Lanes x) { LT_EACH(Lanes, std::exp(x.v[i])); }
#endif

inline Lanes sigmoid(Lanes x) { return inverse(all(1.0f) + exp(zero() - x)); }

// What a word holds: ``Item`` is a stored number, ``per`` of them make a word.
struct F32 {
    using Item = float;
    static constexpr int per = 1;
    static Lanes dot(Lanes c, Words a, Words b) { return dot_f32(c, a, b); }
};
struct BF16 {
    using Item = bf16;
    static constexpr int per = 2;
    static Lanes dot(Lanes c, Words a, Words b) { return dot_bf16(c, a, b); }
};

inline float item(float x) { return x; }
inline float item(bf16 x) { return widen(x); }
inline void put(float* p, float x) { *p = x; }
inline void put(bf16* p, float x) { *p = narrow(x); }

inline long up(long n, long to) { return (n + to - 1) / to * to; }

}  // namespace lt
