// The mask plan on the CPU: an image at a time, ranks by histograms of the keys instead of a sort.
#include "common/mask_plan.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "common/mask_plan_index.h"
#include "common/mask_ratio.h"
#include "cpu/parallel.h"
#include "cpu/vector_path.h"

namespace hdxray {
namespace {

constexpr int kBins = 256;  // of a stratum's keys, by their top byte
constexpr Threshold kNone{0, -1};
constexpr Threshold kAll{UINT32_MAX, INT32_MAX};

// What one image needs, kept from call to call by each thread: at 80 x 80 patches some 150 KB, which malloc would
// otherwise fetch from the system, page by page, every time.
struct Workspace {
    std::vector<uint8_t> stratum;  // [n]: 0 not valid, 1, 2
    std::vector<uint32_t> keys;    // [n rounded up to 32]
    std::vector<uint32_t> block_keys;
    std::vector<uint16_t> bins;  // [n]: stratum * 256 + top byte of the key
    std::vector<int32_t> found;  // [n]
    std::vector<uint64_t> ranked;
    std::vector<int32_t> keep_ids, predict_ids;  // [n + 8]
    int32_t histogram[3 * kBins];
    bool keys_ready = false;

    void prepare(int64_t n) {
        const auto size = static_cast<size_t>(n);
        stratum.resize(size);
        keys.resize((size + 31) / 32 * 32);
        bins.resize(size);
        found.resize(size);
        keep_ids.resize(size + 8);
        predict_ids.resize(size + 8);
        keys_ready = false;
    }
};

Workspace& workspace() {
    static thread_local Workspace ws;
    return ws;
}

// Strata of image b: 1 inside, 2 outside, 0 not valid; sizes of both go to `size`.
void classify(const MaskPlanSpec& spec, int64_t b, uint8_t* stratum, int64_t* size) {
    const int64_t n = static_cast<int64_t>(spec.grid_h) * spec.grid_w;
    const uint8_t* valid = spec.valid + b * n;
    const uint8_t* inside = spec.inside + b * n;
    if (spec.strategy == Strategy::kRectangle) {
        const Rectangle box = rectangle_of(spec.grid_h, spec.grid_w);
        for (int y = 0; y < spec.grid_h; ++y) {
            for (int x = 0; x < spec.grid_w; ++x) {
                const int64_t i = static_cast<int64_t>(y) * spec.grid_w + x;
                stratum[i] = static_cast<uint8_t>(stratum_of(valid[i] != 0, in_rectangle(box, y, x)));
            }
        }
    } else {
        for (int64_t i = 0; i < n; ++i) {
            const auto v = static_cast<uint8_t>(valid[i] != 0), in = static_cast<uint8_t>(inside[i] != 0);
            stratum[i] = static_cast<uint8_t>(2 * v - (v & in));
        }
    }
    // Bytes of 0..2 are summed eight at a time; 127 words of them cannot overflow a byte.
    int64_t sum = 0, n_valid = 0, i = 0;
    while (i + 8 <= n) {
        uint64_t bytes = 0, ones = 0;
        for (int word = 0; word < 127 && i + 8 <= n; ++word, i += 8) {
            uint64_t w;
            std::memcpy(&w, stratum + i, 8);
            bytes += w;
            ones += (w | w >> 1) & 0x0101010101010101ull;
        }
        const auto across = [](uint64_t v) {
            v = (v & 0x00FF00FF00FF00FFull) + (v >> 8 & 0x00FF00FF00FF00FFull);
            return static_cast<int64_t>((v * 0x0001000100010001ull) >> 48);
        };
        sum += across(bytes);
        n_valid += across(ones);
    }
    for (; i < n; ++i) {
        sum += stratum[i];
        n_valid += stratum[i] != 0;
    }
    size[2] = sum - n_valid;
    size[1] = n_valid - size[2];
}

void make_keys(const MaskPlanSpec& spec, int64_t b, Workspace& ws) {
    const int64_t n = static_cast<int64_t>(spec.grid_h) * spec.grid_w;
    const auto index = static_cast<uint64_t>(spec.index[b]);
    const auto words = [&](uint32_t* out, int64_t count, uint32_t epoch) {
        kernels().philox_words(out, count, 0, epoch, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                               static_cast<uint32_t>(spec.seed), static_cast<uint32_t>(spec.seed >> 32));
    };
    if (spec.strategy == Strategy::kBlock) {
        const int edge = block_edge(spec.grid_h, spec.grid_w);
        const int64_t across = blocks_along(spec.grid_w, edge), down = blocks_along(spec.grid_h, edge);
        ws.block_keys.resize(static_cast<size_t>((across * down + 31) / 32 * 32));
        words(ws.block_keys.data(), across * down, spec.epoch | kBlockEpochBit);
        for (int y = 0; y < spec.grid_h; ++y) {
            const uint32_t* line = ws.block_keys.data() + y / edge * across;
            uint32_t* out = ws.keys.data() + static_cast<int64_t>(y) * spec.grid_w;
            for (int x = 0; x < spec.grid_w; ++x) out[x] = line[x / edge];
        }
    } else {
        words(ws.keys.data(), n, spec.epoch);
    }
    const uint8_t* stratum = ws.stratum.data();
    const uint32_t* keys = ws.keys.data();
    uint16_t* bins = ws.bins.data();
    int32_t histogram[3 * kBins] = {};
    for (int64_t i = 0; i < n; ++i) {
        const auto bin = static_cast<uint16_t>(stratum[i] << 8 | keys[i] >> 24);
        bins[i] = bin;
        ++histogram[bin];
    }
    std::memcpy(ws.histogram, histogram, sizeof histogram);
    ws.keys_ready = true;
}

// The (key, id) of rank k, counted from 1, among the `size` patches of stratum s. No sort: the histogram names the bin
// it falls into, and only that bin's few patches are compared.
Threshold rank(Workspace& ws, int s, int64_t k, int64_t size) {
    if (k <= 0) return kNone;
    if (k >= size) return kAll;
    const int32_t* histogram = ws.histogram + s * kBins;
    int bin = 0;
    while (k > histogram[bin]) k -= histogram[bin++];
    const int64_t n_found = kernels().find_bin(ws.bins.data(), static_cast<int64_t>(ws.bins.size()),
                                               static_cast<uint16_t>(s * kBins + bin), ws.found.data());
    ws.ranked.resize(static_cast<size_t>(n_found));
    for (int64_t i = 0; i < n_found; ++i) {
        const int32_t id = ws.found[i];
        ws.ranked[i] = place_of(ws.keys[id], static_cast<uint32_t>(id));
    }
    const auto at = ws.ranked.begin() + (k - 1);
    std::nth_element(ws.ranked.begin(), at, ws.ranked.end());
    return {static_cast<uint32_t>(*at >> 32), static_cast<int32_t>(*at & UINT32_MAX)};
}

// Of the strata that have a patch of rank k[s], the one whose patch of that rank has the smallest (key, id).
int stratum_of_smallest(Workspace& ws, const int64_t* size, const int64_t* k) {
    uint64_t smallest = UINT64_MAX;
    int chosen = 0;
    for (int s = 1; s <= 2; ++s) {
        if (k[s] > size[s]) continue;
        // A rank equal to the size would come back as kAll; one more makes rank() look it up.
        const Threshold t = rank(ws, s, k[s], size[s] + 1);
        const uint64_t place = place_of(t.key, static_cast<uint32_t>(t.id));
        if (chosen == 0 || place < smallest) {
            smallest = place;
            chosen = s;
        }
    }
    return chosen;
}

// How many patches of each stratum of image b are kept and predicted. Leaves the strata in ws.
Budget plan_budget(const MaskPlanSpec& spec, int64_t b, Workspace& ws) {
    ws.prepare(static_cast<int64_t>(spec.grid_h) * spec.grid_w);
    int64_t size[3];
    classify(spec, b, ws.stratum.data(), size);
    if (spec.strategy == Strategy::kRandom) {  // one stratum
        for (auto& s : ws.stratum) s = s != 0;
    }
    Budget budget = keep_budget(spec, size[1], size[2]);
    if (budget.lacks_one_kept()) {
        int s = budget.size[1] > 0 ? 1 : 2;
        if (budget.size[1] > 0 && budget.size[2] > 0) {
            make_keys(spec, b, ws);
            const int64_t first[3] = {0, 1, 1};
            s = stratum_of_smallest(ws, budget.size, first);
        }
        keep_one(budget, s);
    }
    predict_budget(spec.predict, budget);
    return budget;
}

}  // namespace

void check_mask_plan(const MaskPlanSpec& spec) {
    check(spec.batch >= 0 && spec.grid_h > 0 && spec.grid_w > 0, "mask_plan: sizes must be positive");
    check(static_cast<int64_t>(spec.grid_h) * spec.grid_w * std::max<int64_t>(spec.batch, 1) <= INT32_MAX,
          "mask_plan: more patches than int32 can count");
    check(spec.batch == 0 || (spec.inside && spec.valid && spec.index), "mask_plan: null pointer");
    for (const double share : {spec.ratio_inside, spec.ratio_outside, spec.predict}) {
        check(share >= 0 && share <= 1, "mask_plan: ratios must lie in [0, 1]");
    }
    check(spec.epoch < kBlockEpochBit, "mask_plan: epoch must be below 2^31");
    check(spec.max_keep >= 0 && spec.max_predict >= 0, "mask_plan: bounds must not be negative");
}

void check_plan_ids(const MaskPlanSpec& spec, const PlanIds& out) {
    check(out.keep_capacity >= 0 && out.predict_capacity >= 0 && (out.keep_ids || out.keep_capacity == 0) &&
              (out.predict_ids || out.predict_capacity == 0),
          "mask_plan: no room for the ids");
    check(spec.batch > 0 || (out.keep_capacity == 0 && out.predict_capacity == 0), "mask_plan: ids of no images");
}

void mask_plan_counts(const MaskPlanSpec& spec, int32_t* keep_cu, int32_t* predict_cu) {
    check_mask_plan(spec);
    keep_cu[0] = predict_cu[0] = 0;
    for (int64_t b = 0; b < spec.batch; ++b) {
        const Budget budget = plan_budget(spec, b, workspace());
        keep_cu[b + 1] = static_cast<int32_t>(keep_cu[b] + bounded(budget.keep_total(), spec.max_keep));
        predict_cu[b + 1] = static_cast<int32_t>(predict_cu[b] + bounded(budget.predict_total(), spec.max_predict));
    }
}

void mask_plan_ids(const MaskPlanSpec& spec, const int32_t* keep_cu, const int32_t* predict_cu, const PlanIds& out,
                   int n_threads) {
    check_mask_plan(spec);
    check_plan_ids(spec, out);
    const int64_t n_keep_ids = keep_cu[spec.batch], n_predict_ids = predict_cu[spec.batch];
    check(n_keep_ids >= 0 && n_keep_ids <= out.keep_capacity && n_predict_ids >= 0 &&
              n_predict_ids <= out.predict_capacity,
          "mask_plan: no room for the ids");
    parallel_for(spec.batch, 1, n_threads, [&](int64_t begin, int64_t end) {
        Workspace& ws = workspace();
        for (int64_t b = begin; b < end; ++b) {
            Budget budget = plan_budget(spec, b, ws);
            const int64_t n_keep = bounded(budget.keep_total(), spec.max_keep);
            const int64_t n_predict = bounded(budget.predict_total(), spec.max_predict);
            check(n_keep == keep_cu[b + 1] - keep_cu[b] && n_predict == predict_cu[b + 1] - predict_cu[b] &&
                      keep_cu[b] >= 0 && keep_cu[b + 1] <= n_keep_ids && predict_cu[b] >= 0 &&
                      predict_cu[b + 1] <= n_predict_ids,
                  "mask_plan: cu_seqlens do not belong to these arguments");
            if (budget.total() == 0) continue;
            if (!ws.keys_ready) make_keys(spec, b, ws);
            if (budget.one_predicted) {
                const int64_t next[3] = {0, budget.keep[1] + 1, budget.keep[2] + 1};
                budget.predict[stratum_of_smallest(ws, budget.size, next)] = 1;
            }
            EmitJob job{};
            job.keys = ws.keys.data();
            job.stratum = ws.stratum.data();
            job.n = static_cast<int64_t>(ws.stratum.size());
            job.keep_ids = ws.keep_ids.data();
            job.predict_ids = ws.predict_ids.data();
            for (int s = 1; s <= 2; ++s) {
                job.keep[s] = rank(ws, s, budget.keep[s], budget.size[s]);
                job.predict[s] = rank(ws, s, budget.keep[s] + budget.predict[s], budget.size[s]);
            }
            int64_t n_kept = 0, n_predicted = 0;  // before the bounds
            kernels().emit(job, &n_kept, &n_predicted);
            std::copy_n(ws.keep_ids.data(), n_keep, out.keep_ids + keep_cu[b]);
            std::copy_n(ws.predict_ids.data(), n_predict, out.predict_ids + predict_cu[b]);
        }
    });
    std::fill(out.keep_ids + n_keep_ids, out.keep_ids + out.keep_capacity, 0);
    std::fill(out.predict_ids + n_predict_ids, out.predict_ids + out.predict_capacity, 0);
}

void philox(uint32_t* words, int64_t n, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key0,
            uint32_t key1) {
    check(n >= 0 && (words || n == 0), "philox: bad arguments");
    std::vector<uint32_t> padded(static_cast<size_t>((n + 31) / 32 * 32));
    kernels().philox_words(padded.data(), n, c0, c1, c2, c3, key0, key1);
    std::copy_n(padded.data(), n, words);
}

}  // namespace hdxray
