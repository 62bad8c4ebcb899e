// Sampling replies: threads that each keep a small wave of rows going. A wave is small so that its keys and values stay
// in the cache; rows know nothing of each other, so that no reply depends on waves, threads, or who else is there.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "draft.h"

namespace lt {

struct Request {
    int64_t prompts, rows;
    const int32_t* tokens;  // of all prompts, end to end
    const int64_t* offset;  // (prompts + 1,)
    const int32_t* prompt;  // of every row: its prompt, its randomness, the most tokens it may have
    const uint64_t* key;
    const int64_t* limit;
    const uint8_t* stops;  // (vocabulary,): 1 for a token that ends a reply
    float temperature;     // 0: the most likely token
    int32_t threads, wave;
    int32_t* drawn;      // results, row i from place start[i] on
    float* logprobs;
    const int64_t* start;
    int64_t* length;     // of every row; 0 until it has ended
    int16_t* prompt_choices;  // the experts of every token that was read (routed layers, K), as ``tokens`` lie and as
    int16_t* choices;         // ``drawn`` does: entry t is of the token that drawn[t] was drawn after; or null
    int64_t draft_rows;  // where modules draft: drafts are checked in steps of no more rows than this, in one thread
    int64_t* drafts;     // (2,): how many tokens were drafted, and how many of them drawn; added to
};

// Called by the thread that asked, with the prompts whose rows have all ended since the last call; not 0: stop.
using Report = int32_t (*)(const int32_t* prompts, int64_t count);

enum Status : int32_t { DONE = 0, STOPPED = 1, NO_MEMORY = 2, NO_TOKEN = 3 };

// The i-th number in (0, 1) of a key: SplitMix64 at a counter.
inline double uniform(uint64_t key, int64_t i) {
    uint64_t z = key + uint64_t(i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return (double((z ^ z >> 31) >> 11) + 0.5) / 9007199254740992.0;
}

struct Draw {
    int32_t token;
    float logprob;  // NaN: no token can be drawn
};

// A token of softmax(z / temperature) by inverting its distribution function at u, with its log-prob; at temperature 0
// the first of the most likely ones, with that at 1. z: (up(count, 16),), overwritten.
inline Draw draw(float* z, long count, float temperature, double u) {
    const float sharpness = temperature > 0 ? 1.0f / temperature : 1.0f;
    for (long c = count; c < up(count, 16); c++) z[c] = -1e30f;
    Lanes top = load(z), faults = zero();
    for (long c = 0; c < count; c += 16) {
        Lanes v = load(z + c);
        top = max(top, v), faults = fma(v, zero(), faults);  // 0 · ∞ and 0 · NaN are NaN
    }
    if (std::isnan(sum(faults))) return {0, NAN};
    const float most = highest(top);
    long best = 0;
    if (!(temperature > 0))
        while (z[best] != most) best++;
    const float chosen = z[best];
    double mass = 0;
    for (long c = 0; c < count; c += 16) {
        Lanes e = exp((load(z + c) - all(most)) * all(sharpness));
        store(z + c, e);
        if (c + 16 > count)
            for (long k = count; k < c + 16; k++) z[k] = 0;
        mass += sum(load(z + c));
    }
    if (!(temperature > 0)) return {int32_t(best), float(double(chosen - most) - std::log(mass))};
    const double wanted = u * mass;
    double below = 0;
    long c = 0;
    for (double next; c + 16 < count; c += 16, below = next)
        if ((next = below + sum(load(z + c))) >= wanted) break;
    long last = c;
    for (long k = c; k < std::min(count, c + 16); k++) {
        if (z[k] > 0) last = k;
        if ((below += z[k]) >= wanted && z[k] > 0) break;
    }
    return {int32_t(last), float(std::log(double(z[last]) / mass))};
}

template <class E>
class Generation {
    struct Prompt {
        std::mutex reading;
        Read<E> read;
        bool is_read = false;
        std::atomic<int64_t> open{0};
    };
    struct Slot {
        int64_t row = -1;
        bool plain = false;  // no drafts in the next step
        Reply<E> reply;
    };
    struct Share { int64_t next, end; };  // rows of one thread; others take from its end

public:
    Generation(const Decoder& decoder, const Request& request)
        : d(decoder), r(request), prompts(request.prompts), shares(std::max(1, request.threads)) {
        for (int64_t i = 0; i < r.rows; i++) prompts[r.prompt[i]].open++;
        const int64_t T = int64_t(shares.size());
        for (int64_t t = 0; t < T; t++) shares[t] = {t * r.rows / T, (t + 1) * r.rows / T};
    }

    Status run(Report report) {
        std::vector<std::thread> threads;
        running = int(shares.size());
        try {
            for (size_t t = 0; t < shares.size(); t++) threads.emplace_back([this, t] { work(t); });
        } catch (const std::exception&) {  // the machine gives no more threads: those that are there take their rows
            std::lock_guard<std::mutex> lock(mutex);
            running -= int(shares.size() - threads.size());
            if (threads.empty()) fail(NO_MEMORY);
        }
        std::unique_lock<std::mutex> lock(mutex);
        std::vector<int32_t> told;
        bool ended = false;  // by the one who is told
        while (running || !finished.empty()) {
            if (running) wake.wait_for(lock, std::chrono::milliseconds(20));
            told.swap(finished);
            lock.unlock();
            if (report && !ended && report(told.data(), int64_t(told.size()))) ended = true, fail(STOPPED);
            told.clear();
            lock.lock();
        }
        lock.unlock();
        for (auto& thread : threads) thread.join();
        return Status(status.load());
    }

private:
    void fail(Status why) {
        int expected = DONE;
        status.compare_exchange_strong(expected, why);
    }

    int64_t take(size_t thread) {  // the next row, or -1
        std::lock_guard<std::mutex> lock(mutex);
        Share* own = &shares[thread];
        if (own->next < own->end) return own->next++;
        Share* most = own;
        for (auto& other : shares)
            if (other.end - other.next > most->end - most->next) most = &other;
        return most->next < most->end ? --most->end : -1;
    }

    void work(size_t thread) {
        try {
            turn(thread);
        } catch (const std::bad_alloc&) {
            fail(NO_MEMORY);
        }
        std::lock_guard<std::mutex> lock(mutex);
        running--;
        wake.notify_all();
    }

    void turn(size_t thread) {
        Pass<E> pass(d);
        std::vector<Slot> slots(std::max(1, r.wave));
        std::vector<Row<E>> rows;
        std::vector<Slot*> busy;
        std::vector<Reply<E>*> replies;
        int64_t counts[2] = {0, 0};
        bool more = true;
        while (status == DONE) {
            for (auto& slot : slots)
                if (more && slot.row < 0) more = admit(slot, take(thread), pass);
            rows.clear(), busy.clear(), replies.clear();
            for (auto& slot : slots)
                if (slot.row >= 0) busy.push_back(&slot), replies.push_back(&slot.reply);
            if (busy.empty()) break;
            for (auto* reply : replies) reply->forget_drafts();
            if (d.ahead && int64_t(busy.size()) * (1 + d.ahead) <= r.draft_rows) draft(busy, replies, pass);
            for (auto* slot : busy)
                slot->reply.rows(d, d.noted(r.choices, r.start[slot->row] + slot->reply.written), rows);
            float* z = pass.run(rows.data(), long(rows.size()), true);
            long row = 0;
            for (auto* slot : busy) {
                const long next = row + 1 + slot->reply.drafts;
                accept(*slot, z + row * d.padded(), d.ahead ? pass.hidden() + row * d.width : nullptr, counts);
                row = next;
            }
        }
        std::lock_guard<std::mutex> lock(mutex);
        for (int i = 0; d.ahead && i < 2; i++) r.drafts[i] += counts[i];
    }

    bool admit(Slot& slot, int64_t row, Pass<E>& pass) {
        if (row < 0) return false;
        Prompt& prompt = prompts[r.prompt[row]];
        const int64_t first = r.offset[r.prompt[row]], end = r.offset[r.prompt[row] + 1];
        {
            std::lock_guard<std::mutex> lock(prompt.reading);
            if (!prompt.is_read) {
                prompt.read.read(pass, d, r.tokens + first, end - first - 1, d.noted(r.prompt_choices, first));
                prompt.is_read = true;
            }
        }
        slot.reply.begin(d, prompt.read, r.tokens + first, end - first - 1, r.limit[row]);
        slot.row = row, slot.plain = false;
        return true;
    }

    // A draft is drawn with the random number of its place: it is right if the model itself then draws that token.
    void draft(const std::vector<Slot*>& busy, const std::vector<Reply<E>*>& replies, Pass<E>& pass) {
        auto room = [&](long i) {
            return busy[i]->plain ? 0 : r.limit[busy[i]->row] - replies[i]->written - 1;
        };
        propose(pass, d, replies, room, [&](long i, long k, float* z) {
            const Draw out = draw(z, d.vocabulary, r.temperature, uniform(r.key[busy[i]->row], replies[i]->written + k));
            return std::isnan(out.logprob) ? -1 : out.token;
        });
    }

    // Takes a token, and further ones as long as those before them were drafted.  z, hidden: of the rows that were fed.
    void accept(Slot& slot, float* z, const float* hidden, int64_t* counts) {
        Reply<E>& reply = slot.reply;
        const int64_t first = r.start[slot.row] + reply.written;
        const int32_t* drafted = reply.drafted();
        counts[0] += reply.drafts;
        long count = 0;
        bool ended = false;
        for (bool right = true; right && !ended; z += d.padded()) {
            const Draw out = draw(z, d.vocabulary, r.temperature, uniform(r.key[slot.row], reply.written + count));
            if (std::isnan(out.logprob)) break;
            r.drawn[first + count] = out.token, r.logprobs[first + count] = out.logprob;
            right = count < reply.drafts && drafted[count] == out.token;
            count++;
            ended = r.stops[out.token] || reply.written + count >= r.limit[slot.row];
            counts[1] += right && !ended;
        }
        if (!count && !reply.drafts) {
            r.length[slot.row] = -1 - reply.written;
            return fail(NO_TOKEN);
        }
        slot.plain = !count;  // a draft whose own numbers are not finite spoils those before it: once more without
        if (count) reply.take(d, r.drawn + first, count, hidden);
        if (ended) end(slot);
    }

    void end(Slot& slot) {
        r.length[slot.row] = slot.reply.written;
        Prompt& prompt = prompts[r.prompt[slot.row]];
        slot.row = -1;
        if (--prompt.open == 0) {
            prompt.read = {};
            std::lock_guard<std::mutex> lock(mutex);
            finished.push_back(int32_t(&prompt - prompts.data()));
        }
    }

    const Decoder& d;
    const Request& r;
    std::vector<Prompt> prompts;
    std::vector<Share> shares;
    std::vector<int32_t> finished;
    std::mutex mutex;
    std::condition_variable wake;
    std::atomic<int> status{DONE};
    int running = 0;
};

}  // namespace lt
