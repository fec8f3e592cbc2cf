/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The guest's writer: numbered durable writes for ever. blocks.py describes the format.
 *
 *   writer [--rate WRITES_PER_SECOND] [--until N] PATH...
 *
 * Every PATH that carries a label is a store; the others (a CD-ROM, a read-only disk) are passed over.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, WORDS = BLOCK / 8, FIRST = 4, LAST = WORDS - 1, ZERO_EVERY = 7, STORES = 16 };

struct label {
    char magic[8];
    uint64_t index, count, blocks, slots, stride, filled;
};

static struct store {
    int fd;
    struct label label;
} stores[STORES];
static uint64_t count;
static uint64_t block[WORDS] __attribute__((aligned(BLOCK)));
static uint64_t pattern[WORDS];
static atomic_uint_fast64_t durable;

static void die(const char *what)
{
    fprintf(stderr, "writer: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t mix(uint64_t n)
{
    uint64_t z = n + 0x9E3779B97F4A7C15u;

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static uint64_t slot_of(uint64_t n)
{
    uint64_t slots = stores[n % count].label.slots;
    uint64_t slot = mix(n) % slots;

    if (count == 1 && n % ZERO_EVERY == 0 && slot == mix(n - 1) % slots)
        slot = (slot + 1) % slots;
    return slot;
}

static uint64_t sum(void)
{
    uint64_t total = 0;

    for (int i = 0; i < LAST; i++)
        total += block[i];
    return total;
}

static void make_block(uint64_t n, uint64_t number)
{
    uint64_t key = mix(n);

    if (n % ZERO_EVERY == 0) {
        memset(block, 0, BLOCK);
        return;
    }
    memcpy(block, "LBRIGWRT", 8);
    block[1] = n;
    block[2] = n % count;
    block[3] = number;
    for (int i = FIRST; i < LAST; i++)
        block[i] = pattern[i] ^ key;
    block[LAST] = sum();
}

static void open_store(const char *path)
{
    int fd = open(path, O_RDWR | O_DIRECT | O_DSYNC);
    struct label *label = (struct label *)block;

    if (fd < 0 && (errno == EROFS || errno == EACCES || errno == EPERM || errno == ENOMEDIUM))
        return;
    if (fd < 0 || pread(fd, block, BLOCK, 0) != BLOCK)
        die(path);
    if (memcmp(label->magic, "LBRIGDSK", 8) != 0) {
        close(fd);
        return;
    }
    if (label->index >= STORES || stores[label->index].label.slots != 0) {
        errno = EEXIST;
        die(path);
    }
    stores[label->index].fd = fd;
    stores[label->index].label = *label;
    count++;
}

/* The greatest n on the stores. */
static uint64_t last_number(void)
{
    uint64_t last = 0;

    for (uint64_t i = 0; i < count; i++)
        for (uint64_t slot = 0; slot < stores[i].label.slots; slot++) {
            if (pread(stores[i].fd, block, BLOCK, (1 + slot * stores[i].label.stride) * BLOCK) != BLOCK)
                die("reading a store");
            if (memcmp(block, "LBRIGWRT", 8) == 0 && block[LAST] == sum() && block[1] > last)
                last = block[1];
        }
    return last;
}

/* A thread of its own, so that the last number is told even while a write hangs in a frozen file system. */
static void *tell(void *unused)
{
    const struct timespec pause = {.tv_nsec = 50 * 1000 * 1000};
    uint64_t told = 0;

    for (;;) {
        uint64_t n = atomic_load(&durable);
        if (n != told)
            printf("durable %llu\n", (unsigned long long)n);
        told = n;
        nanosleep(&pause, NULL);
    }
    return unused;
}

int main(int argc, char **argv)
{
    uint64_t rate = 0, until = UINT64_MAX, first;
    struct timespec next;
    pthread_t teller;
    int i = 1;

    setvbuf(stdout, NULL, _IOLBF, 0);
    for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        if (strcmp(argv[i], "--rate") == 0)
            rate = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--until") == 0)
            until = strtoull(argv[i + 1], NULL, 10);
    }
    for (; i < argc; i++)
        open_store(argv[i]);
    for (uint64_t s = 0; s < count; s++)
        if (stores[s].label.count != count) {
            errno = ENXIO;
            die("not all stores are here");
        }
    if (count == 0) {
        errno = ENXIO;
        die("no store");
    }

    for (int w = FIRST; w < LAST; w++)
        pattern[w] = mix(w);
    first = last_number() + 1;
    printf("writer: %llu stores, first write %llu\n", (unsigned long long)count, (unsigned long long)first);
    if (pthread_create(&teller, NULL, tell, NULL) != 0)
        die("pthread_create");
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (uint64_t n = first; n <= until; n++) {
        struct store *store = &stores[n % count];
        uint64_t number = 1 + slot_of(n) * store->label.stride;

        if (rate) {
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
            next.tv_nsec += 1000000000 / rate;
            next.tv_sec += next.tv_nsec / 1000000000;
            next.tv_nsec %= 1000000000;
        }
        make_block(n, number);
        if (pwrite(store->fd, block, BLOCK, number * BLOCK) != BLOCK)
            die("writing");
        atomic_store(&durable, n);
    }
    return 0;
}
