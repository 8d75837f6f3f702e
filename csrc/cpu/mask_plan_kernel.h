// Random keys, and the emission of the chosen patch ids in ascending order.
#pragma once
#include "common/mask_plan_index.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace hdxray::HDXRAY_ISA {
namespace {

#if HDXRAY_AVX2

// Four counters, each word in the low half of a 64-bit lane: the multiplication reads the low halves only, so what the
// other operations leave in the high halves does no harm and is never cleared.
struct PhiloxLanes {
    __m256i x0, x1, x2, x3;

    void round(__m256i m0, __m256i m1, __m256i k0, __m256i k1) {
        const __m256i a = _mm256_mul_epu32(x0, m0), b = _mm256_mul_epu32(x2, m1);
        x0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(b, 32), x1), k0);
        x2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(a, 32), x3), k1);
        x1 = b;
        x3 = a;
    }
    // [word][counter] -> [counter][word]
    void store(uint32_t* words) const {
        const __m256i low = _mm256_blend_epi32(x0, _mm256_slli_epi64(x1, 32), 0xAA);   // words 0, 1 of each counter
        const __m256i high = _mm256_blend_epi32(x2, _mm256_slli_epi64(x3, 32), 0xAA);  // words 2, 3
        const __m256i even = _mm256_unpacklo_epi64(low, high), odd = _mm256_unpackhi_epi64(low, high);
        __m256i* out = reinterpret_cast<__m256i*>(words);
        _mm256_storeu_si256(out, _mm256_permute2x128_si256(even, odd, 0x20));
        _mm256_storeu_si256(out + 1, _mm256_permute2x128_si256(even, odd, 0x31));
    }
};

inline __m256i wide(uint32_t x) {
    return _mm256_set1_epi64x(x);
}

// Eight counters a turn, all four words of each used.
void philox_words(uint32_t* words, int64_t n, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key0,
                  uint32_t key1) {
    const __m256i m0 = wide(kPhiloxM0), m1 = wide(kPhiloxM1);
    __m256i counter = _mm256_add_epi64(wide(c0), _mm256_setr_epi64x(0, 1, 2, 3));
    for (int64_t i = 0; i < n; i += 32, counter = _mm256_add_epi64(counter, wide(8))) {
        PhiloxLanes first{counter, wide(c1), wide(c2), wide(c3)};
        PhiloxLanes second{_mm256_add_epi64(counter, wide(4)), wide(c1), wide(c2), wide(c3)};
        uint32_t k0 = key0, k1 = key1;
        for (int round = 0; round < kPhiloxRounds; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
            first.round(m0, m1, wide(k0), wide(k1));
            second.round(m0, m1, wide(k0), wide(k1));
        }
        first.store(words + i);
        second.store(words + i + 16);
    }
}

int64_t find_bin(const uint16_t* bins, int64_t n, uint16_t wanted, int32_t* found) {
    const __m256i target = _mm256_set1_epi16(static_cast<int16_t>(wanted));
    int64_t count = 0, i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bins + i));
        auto hits = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi16(v, target)));
        while (hits) {  // two bits an element
            found[count++] = static_cast<int32_t>(i + __builtin_ctz(hits) / 2);
            hits &= ~(3u << __builtin_ctz(hits));
        }
    }
    for (; i < n; ++i) {
        if (bins[i] == wanted) found[count++] = static_cast<int32_t>(i);
    }
    return count;
}

// Lane order that moves the lanes of a bit mask to the front, for each of the 256 masks.
struct CompressTable {
    uint64_t lanes[256];
    constexpr CompressTable() : lanes() {
        for (int mask = 0; mask < 256; ++mask) {
            uint64_t packed = 0;
            int to = 0;
            for (int lane = 0; lane < 8; ++lane) {
                if (mask >> lane & 1) packed |= static_cast<uint64_t>(lane) << (8 * to++);
            }
            lanes[mask] = packed;
        }
    }
};
constexpr CompressTable kCompress;

inline int32_t* append(int32_t* out, __m256i ids, int mask) {
    const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kCompress.lanes[mask])));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(ids, order));
    return out + __builtin_popcount(static_cast<unsigned>(mask));
}

// A threshold in each lane, chosen by the lane's stratum; keys are compared as signed numbers, hence the flipped top
// bit.
struct LaneThreshold {
    __m256i key1, key2, id1, id2;
    explicit LaneThreshold(const Threshold* t)
        : key1(_mm256_set1_epi32(static_cast<int>(t[1].key ^ 0x80000000u))),
          key2(_mm256_set1_epi32(static_cast<int>(t[2].key ^ 0x80000000u))),
          id1(_mm256_set1_epi32(t[1].id)),
          id2(_mm256_set1_epi32(t[2].id)) {}
    // All ones where (key, id) <= threshold.
    __m256i reached(__m256i keys, __m256i ids, __m256i second) const {
        const __m256i limit = _mm256_blendv_epi8(key1, key2, second);
        const __m256i below = _mm256_cmpgt_epi32(limit, keys), equal = _mm256_cmpeq_epi32(limit, keys);
        const __m256i late = _mm256_cmpgt_epi32(ids, _mm256_blendv_epi8(id1, id2, second));
        return _mm256_or_si256(below, _mm256_andnot_si256(late, equal));
    }
};

void emit(const EmitJob& job, int64_t* n_keep, int64_t* n_predict) {
    const LaneThreshold keep(job.keep), predict(job.predict);
    const __m256i flip = _mm256_set1_epi32(static_cast<int>(0x80000000u));
    __m256i ids = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    int32_t *to_keep = job.keep_ids, *to_predict = job.predict_ids;
    for (int64_t i = 0; i < job.n; i += 8, ids = _mm256_add_epi32(ids, _mm256_set1_epi32(8))) {
        __m128i bytes = _mm_setzero_si128();
        if (i + 8 <= job.n) {
            bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(job.stratum + i));
        } else {  // lanes past the end are not valid, whatever their keys are
            memcpy(&bytes, job.stratum + i, static_cast<size_t>(job.n - i));
        }
        const __m256i stratum = _mm256_cvtepu8_epi32(bytes);
        const __m256i valid = _mm256_cmpgt_epi32(stratum, _mm256_setzero_si256());
        const __m256i second = _mm256_cmpeq_epi32(stratum, _mm256_set1_epi32(2));
        const __m256i keys = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(job.keys + i)), flip);
        const __m256i kept = _mm256_and_si256(valid, keep.reached(keys, ids, second));
        const __m256i chosen = _mm256_and_si256(valid, predict.reached(keys, ids, second));
        const int keep_bits = _mm256_movemask_ps(_mm256_castsi256_ps(kept));
        const int chosen_bits = _mm256_movemask_ps(_mm256_castsi256_ps(chosen));
        to_keep = append(to_keep, ids, keep_bits);
        to_predict = append(to_predict, ids, chosen_bits & ~keep_bits);
    }
    *n_keep = to_keep - job.keep_ids;
    *n_predict = to_predict - job.predict_ids;
}

#else

void philox_words(uint32_t* words, int64_t n, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key0,
                  uint32_t key1) {
    for (int64_t i = 0; i < n; i += 4) {
        const Words4 four = philox4(c0 + static_cast<uint32_t>(i / 4), c1, c2, c3, key0, key1);
        memcpy(words + i, four.word, sizeof four.word);
    }
}

int64_t find_bin(const uint16_t* bins, int64_t n, uint16_t wanted, int32_t* found) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (bins[i] == wanted) found[count++] = static_cast<int32_t>(i);
    }
    return count;
}

void emit(const EmitJob& job, int64_t* n_keep, int64_t* n_predict) {
    int64_t kept = 0, predicted = 0;
    for (int64_t i = 0; i < job.n; ++i) {
        const int stratum = job.stratum[i];
        const uint32_t key = job.keys[i];
        const auto reached = [&](const Threshold& t) { return (key < t.key) | ((key == t.key) & (i <= t.id)); };
        const bool keep = (stratum != 0) & reached(job.keep[stratum]);
        const bool predict = (stratum != 0) & !keep & reached(job.predict[stratum]);
        job.keep_ids[kept] = job.predict_ids[predicted] = static_cast<int32_t>(i);
        kept += keep;
        predicted += predict;
    }
    *n_keep = kept;
    *n_predict = predicted;
}

#endif

}  // namespace
}  // namespace hdxray::HDXRAY_ISA
