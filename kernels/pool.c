/* A pool of threads in the caller's memory. */
#include "kernels.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#if COPPICE_X86
#include <immintrin.h>
#define RELAX() _mm_pause()
#elif COPPICE_ARM
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

enum { threads_max = 256, spins = 4000 };

/* What a thread is told and answers, on a cache line of its own. */
typedef struct seat {
    _Alignas(64) coppice_pool *pool;
    pthread_t thread;
    int32_t share, status;
    _Alignas(16) unsigned char args[COPPICE_ARGS_MOST];
} seat;

/* `round` counts the calls; a thread whose own count is behind has work to do. `left` threads have not finished the
 * present round. Whoever would sleep takes the lock and looks again, and whoever changes what is waited for takes it
 * too before waking the others. */
struct coppice_pool {
    int32_t threads, variant;
    atomic_int busy, stopping;
    _Alignas(64) atomic_uint round;
    _Alignas(64) atomic_int left;
    pthread_mutex_t lock;
    pthread_cond_t begun, done;
    seat seats[];
};

static void work(seat *own) {
    own->status = coppice_variant_run(own->pool->variant, own->args);
}

/* Waits until the round is another than `seen`. */
static unsigned next_round(coppice_pool *pool, unsigned seen) {
    unsigned round = seen;
    for (int spin = 0; spin < spins && round == seen; spin++) {
        round = atomic_load_explicit(&pool->round, memory_order_acquire);
        RELAX();
    }
    if (round != seen)
        return round;
    pthread_mutex_lock(&pool->lock);
    while ((round = atomic_load_explicit(&pool->round, memory_order_acquire)) == seen)
        pthread_cond_wait(&pool->begun, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    return round;
}

static void *serve(void *argument) {
    seat *own = argument;
    coppice_pool *pool = own->pool;
    unsigned seen = 0;
    for (;;) {
        seen = next_round(pool, seen);
        if (atomic_load_explicit(&pool->stopping, memory_order_acquire))
            return NULL;
        work(own);
        if (atomic_fetch_sub_explicit(&pool->left, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

static void begin_round(coppice_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add_explicit(&pool->round, 1, memory_order_release);
    pthread_cond_broadcast(&pool->begun);
    pthread_mutex_unlock(&pool->lock);
}

static void await_others(coppice_pool *pool) {
    for (int spin = 0; spin < spins; spin++) {
        if (atomic_load_explicit(&pool->left, memory_order_acquire) == 0)
            return;
        RELAX();
    }
    pthread_mutex_lock(&pool->lock);
    while (atomic_load_explicit(&pool->left, memory_order_acquire) > 0)
        pthread_cond_wait(&pool->done, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

static void join(coppice_pool *pool, int32_t threads) {
    atomic_store_explicit(&pool->stopping, 1, memory_order_release);
    begin_round(pool);
    for (int32_t i = 1; i < threads; i++)
        pthread_join(pool->seats[i].thread, NULL);
    pthread_cond_destroy(&pool->begun);
    pthread_cond_destroy(&pool->done);
    pthread_mutex_destroy(&pool->lock);
}

int64_t coppice_pool_bytes(int32_t threads) {
    if (threads < 1 || threads > threads_max)
        return COPPICE_THREADS;
    return (int64_t)(sizeof(coppice_pool) + (size_t)threads * sizeof(seat));
}

int32_t coppice_pool_start(coppice_pool *pool, int64_t bytes, int32_t threads) {
    const int64_t needed = coppice_pool_bytes(threads);
    if (needed < 0)
        return COPPICE_THREADS;
    if (!pool)
        return COPPICE_NULL;
    if ((uintptr_t)pool % _Alignof(coppice_pool) != 0)
        return COPPICE_ALIGNMENT;
    if (bytes < needed)
        return COPPICE_SCRATCH;
    memset(pool, 0, (size_t)needed);
    pool->threads = threads;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->begun, NULL);
    pthread_cond_init(&pool->done, NULL);
    for (int32_t i = 0; i < threads; i++) {
        pool->seats[i].pool = pool;
        pool->seats[i].share = i;
        if (i > 0 && pthread_create(&pool->seats[i].thread, NULL, serve, &pool->seats[i]) != 0) {
            join(pool, i);
            return COPPICE_THREADS;
        }
    }
    return COPPICE_OK;
}

int32_t coppice_pool_stop(coppice_pool *pool) {
    if (!pool)
        return COPPICE_NULL;
    if (atomic_exchange(&pool->busy, 1))
        return COPPICE_BUSY;
    join(pool, pool->threads);
    return COPPICE_OK;
}

int32_t coppice_pool_run(coppice_pool *pool, int32_t variant, const void *args) {
    if (!pool || !args)
        return COPPICE_NULL;
    const size_t size = coppice_args_size(variant);
    if (!size)
        return COPPICE_VARIANT_UNKNOWN;
    if (atomic_exchange_explicit(&pool->busy, 1, memory_order_acquire))
        return COPPICE_BUSY;
    const int32_t threads = pool->threads;
    pool->variant = variant;
    for (int32_t i = 0; i < threads; i++) {
        coppice_work *part = (coppice_work *)(void *)pool->seats[i].args;
        memcpy(pool->seats[i].args, args, size);
        part->share = i;
        part->shares = threads;
        part->scratch_bytes /= threads;
        if (part->scratch)
            part->scratch = (char *)part->scratch + i * part->scratch_bytes;
    }
    atomic_store_explicit(&pool->left, threads - 1, memory_order_release);
    if (threads > 1)
        begin_round(pool);
    work(&pool->seats[0]);
    await_others(pool);
    int32_t status = COPPICE_OK;
    for (int32_t i = 0; i < threads && status == COPPICE_OK; i++)
        status = pool->seats[i].status;
    atomic_store_explicit(&pool->busy, 0, memory_order_release);
    return status;
}
