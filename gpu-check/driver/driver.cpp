// A CUDA driver without a GPU: enough of one for gpu-check-candle to run on, to find out whether things are ordered.
//
// Streams are threads that do their work late, at random, and one after the other; each thread has a per-thread stream of
// its own, as in CUDA. Memory that is freed in a stream is given out again in the same stream at once, while work that was
// sent before still uses it, and elsewhere when that work is done. Page-locked memory is copied from and to late, usual
// memory at once. Products of matrices are late, too, and write nonsense over their results; of other kernels only copies and
// casts do something. Whoever frees page-locked memory that is still in use, or copies to memory that is gone, is told so.
//
// scripts/simulate-cuda builds it and runs gpu-check-candle.

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

using Pointer = uintptr_t;

[[noreturn]] void fault(const char* what) {
    fprintf(stderr, "the simulated driver: %s\n", what);
    abort();
}

// Memory: what there is, and whether it is in use.

std::mutex memory;
std::map<Pointer, size_t> device;                       // That somebody has.
std::multimap<size_t, Pointer> pool;                    // That nobody has.
struct Pinned { size_t bytes; int copies; };
std::map<Pointer, Pinned> pinned;

template <typename Map> auto around(Map& map, Pointer at, size_t bytes) {
    auto found = map.upper_bound(at);
    if (found == map.begin()) return map.end();
    --found;
    size_t size;
    if constexpr (std::is_same_v<typename Map::mapped_type, size_t>) size = found->second;
    else size = found->second.bytes;
    return at + bytes <= found->first + size ? found : map.end();
}

void check(Pointer at, size_t bytes) {
    std::lock_guard lock(memory);
    if (bytes > 0 && around(device, at, bytes) == device.end()) fault("memory that is not allocated is used");
}

bool pin(const void* at, size_t bytes, int copies) {
    std::lock_guard lock(memory);
    auto found = around(pinned, Pointer(at), bytes);
    if (found == pinned.end()) return false;
    found->second.copies += copies;
    return true;
}

// Streams.

struct Freed { Pointer at; size_t bytes; bool again = false; };

struct Stream {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> work;
    uint64_t sent = 0, done = 0;
    bool stop = false;
    std::list<std::shared_ptr<Freed>> freed;
    std::thread thread;

    Stream();
    ~Stream();

    void send(std::function<void()> act) {
        std::lock_guard lock(mutex);
        work.push_back(std::move(act));
        ++sent;
        changed.notify_all();
    }

    void wait() {
        std::unique_lock lock(mutex);
        auto until = sent;
        changed.wait(lock, [&] { return done >= until; });
    }

    void run() {
        std::minstd_rand dice(std::random_device{}());
        for (;;) {
            std::unique_lock lock(mutex);
            changed.wait(lock, [&] { return stop || !work.empty(); });
            if (work.empty()) return;
            auto act = std::move(work.front());
            work.pop_front();
            lock.unlock();
            if (dice() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(dice() % 150));
            act();
            lock.lock();
            ++done;
            changed.notify_all();
        }
    }
};

std::mutex all;
std::set<Stream*> streams;

Stream::Stream() : thread([this] { run(); }) {
    std::lock_guard lock(all);
    streams.insert(this);
}

Stream::~Stream() {
    {
        std::lock_guard lock(all);
        streams.erase(this);
    }
    {
        std::lock_guard lock(mutex);
        stop = true;
        changed.notify_all();
    }
    thread.join();
}

Stream& of(void* handle) {
    // The stream of the thread that asks; handle 0, the one for all, is not simulated.
    thread_local std::unique_ptr<Stream> own;
    if (handle == nullptr) fault("the legacy stream is used");
    if (handle != (void*)2) return *static_cast<Stream*>(handle);
    if (!own) own = std::make_unique<Stream>();
    return *own;
}

struct Progress {
    std::mutex mutex;
    std::condition_variable changed;
    uint64_t asked = 0, reached = 0;

    void wait(uint64_t until) {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return reached >= until; });
    }
};

struct Event { std::shared_ptr<Progress> progress = std::make_shared<Progress>(); };
struct Function { std::string name; };

// Kernels: copies and casts of strided tensors.

float float_of(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

template <typename From, typename To>
void strided(size_t count, size_t dims, const size_t* info, const From* from, To* to, To (*cast)(From)) {
    for (size_t i = 0; i < count; ++i) {
        size_t rest = i, at = 0;
        if (info == nullptr) at = i;
        else for (size_t d = dims; d-- > 0; rest /= info[d]) at += rest % info[d] * info[dims + d];
        to[i] = cast(from[at]);
    }
}

thread_local void* current;
int context;

// Handles of streams that mean another stream in each thread, or the one of the context, need a context.
bool lacks_context(void* stream) { return !current && Pointer(stream) <= 2; }
constexpr int INVALID_CONTEXT = 201;

}  // namespace

extern "C" {

int cuInit(unsigned) { return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal == 0 ? 0 : 101; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGetName(char* name, int len, int) { snprintf(name, size_t(len), "a simulated GPU"); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) { *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1; return 0; }
int cuDevicePrimaryCtxRetain(void** out, int) { *out = &context; return 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxDestroy_v2(void*) { return 0; }
int cuCtxGetCurrent(void** out) { *out = current; return 0; }
int cuCtxSetCurrent(void* to) { current = to; return 0; }
int cuCtxSynchronize() {
    std::lock_guard lock(all);
    for (auto* stream : streams) stream->wait();
    return 0;
}
int cuGetErrorString(int, const char** text) { *text = "an error"; return 0; }

int cuStreamCreate(void** out, unsigned) { *out = new Stream; return 0; }
int cuStreamDestroy_v2(void* stream) { delete static_cast<Stream*>(stream); return 0; }
int cuStreamSynchronize(void* stream) { if (lacks_context(stream)) return INVALID_CONTEXT; of(stream).wait(); return 0; }
int cuStreamIsCapturing(void*, int* status) { *status = 0; return 0; }
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    if (lacks_context(stream)) return INVALID_CONTEXT;
    auto progress = static_cast<Event*>(event)->progress;
    std::unique_lock lock(progress->mutex);
    auto until = progress->asked;
    lock.unlock();
    of(stream).send([progress, until] { progress->wait(until); });
    return 0;
}

int cuEventCreate(void** out, unsigned) { *out = new Event; return 0; }
int cuEventDestroy_v2(void* event) { delete static_cast<Event*>(event); return 0; }
int cuEventRecord(void* event, void* stream) {
    if (lacks_context(stream)) return INVALID_CONTEXT;
    auto progress = static_cast<Event*>(event)->progress;
    std::unique_lock lock(progress->mutex);
    auto reached = ++progress->asked;
    lock.unlock();
    of(stream).send([progress, reached] {
        std::lock_guard lock(progress->mutex);
        progress->reached = std::max(progress->reached, reached);
        progress->changed.notify_all();
    });
    return 0;
}
int cuEventSynchronize(void* event) {
    auto progress = static_cast<Event*>(event)->progress;
    std::unique_lock lock(progress->mutex);
    auto until = progress->asked;
    lock.unlock();
    progress->wait(until);
    return 0;
}

int cuEventQuery(void* event) {
    constexpr int NOT_READY = 600;
    auto progress = static_cast<Event*>(event)->progress;
    std::lock_guard lock(progress->mutex);
    return progress->reached >= progress->asked ? 0 : NOT_READY;
}

int cuMemAllocAsync(Pointer* out, size_t bytes, void* handle) {
    if (lacks_context(handle)) return INVALID_CONTEXT;
    if (bytes == 0) return 1;
    auto& stream = of(handle);
    std::lock_guard lock(memory);
    for (auto freed : stream.freed) {
        if (freed->bytes == bytes && !freed->again) {
            freed->again = true;
            *out = freed->at;
            return 0;
        }
    }
    if (auto found = pool.find(bytes); found != pool.end()) {
        *out = found->second;
        pool.erase(found);
    } else {
        *out = Pointer(aligned_alloc(256, (bytes + 255) / 256 * 256));
        memset((void*)*out, 0xA5, bytes);
    }
    device[*out] = bytes;
    return 0;
}
int cuMemFreeAsync(Pointer at, void* handle) {
    if (lacks_context(handle)) return INVALID_CONTEXT;
    auto& stream = of(handle);
    auto freed = std::make_shared<Freed>();
    {
        std::lock_guard lock(memory);
        auto found = device.find(at);
        if (found == device.end()) fault("memory is freed twice");
        *freed = {at, found->second};
        stream.freed.push_back(freed);
    }
    stream.send([&stream, freed] {
        std::lock_guard lock(memory);
        stream.freed.remove(freed);
        if (freed->again) return;
        memset((void*)freed->at, 0x5A, freed->bytes);
        device.erase(freed->at);
        pool.emplace(freed->bytes, freed->at);
    });
    return 0;
}
int cuMemAlloc_v2(Pointer*, size_t) { fault("memory is allocated without a stream"); }
int cuMemFree_v2(Pointer) { fault("memory is freed without a stream"); }

int cuMemHostAlloc(void** out, size_t bytes, unsigned flags) {
    if (flags & 4) fault("write-combined memory is used");
    *out = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    memset(*out, 0xEE, bytes);
    std::lock_guard lock(memory);
    pinned[Pointer(*out)] = {bytes, 0};
    return 0;
}
int cuMemFreeHost(void* at) {
    std::lock_guard lock(memory);
    auto found = pinned.find(Pointer(at));
    if (found == pinned.end() || found->second.copies != 0) fault("page-locked memory is freed while it is used");
    pinned.erase(found);
    memset(at, 0xDD, 64);
    free(at);
    return 0;
}

int cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, void* stream) {
    if (pin(from, bytes, 1)) {
        of(stream).send([=] { check(to, bytes); memcpy((void*)to, from, bytes); pin(from, bytes, -1); });
    } else {
        auto copy = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
        of(stream).send([=] { check(to, bytes); memcpy((void*)to, copy->data(), bytes); });
    }
    return 0;
}
int cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void* stream) {
    bool late = pin(to, bytes, 1);
    of(stream).send([=] { check(from, bytes); memcpy(to, (void*)from, bytes); if (late) pin(to, bytes, -1); });
    if (!late) of(stream).wait();
    return 0;
}
int cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void* stream) {
    of(stream).send([=] { check(to, bytes); check(from, bytes); memmove((void*)to, (void*)from, bytes); });
    return 0;
}
int cuMemcpyPeerAsync(Pointer to, void*, Pointer from, void*, size_t bytes, void* stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}
int cuMemsetD8Async(Pointer to, unsigned char value, size_t bytes, void* stream) {
    of(stream).send([=] { check(to, bytes); memset((void*)to, value, bytes); });
    return 0;
}

int cuModuleLoad(void** out, const char*) { *out = &context; return 0; }
int cuModuleLoadData(void** out, const void*) { *out = &context; return 0; }
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(void** out, void*, const char* name) { *out = new Function{name}; return 0; }
int cuLaunchKernel(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void* stream,
                   void** arguments, void**) {
    const auto& name = static_cast<Function*>(function)->name;
    auto number = [&](int i) { return *static_cast<size_t*>(arguments[i]); };
    bool copies = name == "ucopy_bf16" || name == "ucopy_f32", widens = name == "cast_bf16_f32";
    if (!copies && !widens) {
        of(stream).send([] {});
        return 0;
    }
    size_t count = number(0), dims = number(1), info = number(2), from = number(3), to = number(4);
    bool narrow = name != "ucopy_f32";
    of(stream).send([=] {
        auto* shape = (const size_t*)info;
        if (shape == nullptr) check(from, count * (narrow ? 2 : 4));
        check(to, count * (narrow && !widens ? 2 : 4));
        if (widens) strided<uint16_t, float>(count, dims, shape, (uint16_t*)from, (float*)to, float_of);
        else if (narrow) strided<uint16_t, uint16_t>(count, dims, shape, (uint16_t*)from, (uint16_t*)to, [](uint16_t x) { return x; });
        else strided<uint32_t, uint32_t>(count, dims, shape, (uint32_t*)from, (uint32_t*)to, [](uint32_t x) { return x; });
    });
    return 0;
}

// cuBLAS and cuRAND, as far as they are used.

struct Blas { void* stream = (void*)2; };
int cublasCreate_v2(void** out) { *out = new Blas; return 0; }
int cublasDestroy_v2(void* blas) { delete static_cast<Blas*>(blas); return 0; }
int cublasSetStream_v2(void* blas, void* stream) { static_cast<Blas*>(blas)->stream = stream; return 0; }
int cublasDgemmStridedBatched() { return 0; }
int cublasGemmStridedBatchedEx(void* blas, int, int, int m, int n, int, const void*, const void*, int, int, long long,
                               const void*, int, int, long long, const void*, void* c, int type, int, long long,
                               int batch, int, int) {
    size_t bytes = size_t(m) * size_t(n) * size_t(batch) * (type == 0 ? 4 : 2);
    of(static_cast<Blas*>(blas)->stream).send([=] {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        check(Pointer(c), bytes);
        memset(c, 0x77, bytes);
    });
    return 0;
}
int curandCreateGenerator(void** out, int) { *out = &context; return 0; }
int curandDestroyGenerator(void*) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return 0; }
int curandSetStream(void*, void*) { return 0; }

}  // extern "C"
