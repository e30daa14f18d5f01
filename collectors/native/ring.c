/* Writes the ring. Every public function is safe to call with no ring open, from any thread, and never fails loudly. */
#define _GNU_SOURCE
#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define STACK_FRAMES 192
#define NAME_SLOTS 32768u /* a power of two */
#define BETWEEN_NS 1000   /* what a compiled graph does between two operators is told from this length on */

struct frame {
    struct name_entry *name;
    int64_t start_ns;
    uint64_t child_ns;
    uint64_t phase_id, outer_phase;
    uint64_t context;
    uint64_t call;  /* of an execution range: the call that it executes */
    int untold;     /* of an execution range: nobody has told of the call */
    int issues;     /* an operator by which C++ issues a call */
    int from_model; /* opened by moescope_phase_begin */
    int quiet;      /* tells nothing new: a graph node, or a range that the model has named itself */
};

struct thread_state {
    uint64_t epoch; /* ring that the chunk belongs to */
    struct chunk *chunk;
    uint64_t phase;
    uint32_t depth; /* frames open, may pass STACK_FRAMES: deeper ones are not recorded */
    uint32_t operators_open;
    uint32_t phases_open;
    uint64_t heard;  /* state of the listener that `pushed` belongs to */
    uint32_t pushed; /* phases of this thread that the listener knows, and the call that is being issued */
    uint64_t call_heard; /* state of the listener that this call was pushed in, 0 for none */
    uint32_t graph;      /* name of the compiled graph that runs, 0 for none */
    uint32_t in_window;
    int64_t between_ns; /* since when the graph runs no operator */
    struct frame frames[STACK_FRAMES];
};

static struct ring_header *_Atomic ring;
static _Atomic uint64_t ring_epoch = 1;
static const struct phase_listener *_Atomic phase_listener; /* stays once set */
static _Atomic uint64_t listening; /* changes with every switch: odd while the listener is on */
static _Atomic uint64_t process_context; /* stage and step, for ranges that bring none */
static __thread int muted; /* operators of this thread are not written: it measures their cost, or is in no window */
static __thread uint64_t thread_operators; /* that ended on this thread, written or not */
static _Atomic uint64_t ranges_state = 1; /* changes with whatever may change whether torch's ranges should be on */
static __thread uint64_t settled_state; /* at which this thread saw to its own, 0 for not at all */
static __thread uint64_t asked_state;   /* at which it asked last */
static struct name_entry entries[NAME_SLOTS];
static struct name_entry *_Atomic slots[NAME_SLOTS];
#define LATELY 1024u
static struct name_entry *_Atomic lately[LATELY]; /* by where a text lay when it was asked for last: torch's lie still */
static uint32_t entry_count;
static pthread_mutex_t name_lock = PTHREAD_MUTEX_INITIALIZER;
/* Calls whose execution range is still to begin, in the order they were issued. */
#define EXPECTED_MAX 256u
static struct {
    struct name_entry *name;
    uint64_t call;
    uint32_t group;
} expected[EXPECTED_MAX];
static _Atomic uint32_t expected_count;
static pthread_mutex_t expected_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint64_t call_numbers;
static _Atomic int following;      /* whether calls that C++ issues are told */
static _Atomic uint64_t followed;  /* of them so far */
static __thread int announced;     /* what this thread issues now comes from Python, which tells of it */
/* Threads that execute the calls of one group alone, by the number of its name. */
#define WORKERS_MAX 1024u
static struct {
    _Atomic uint32_t tid, group;
} workers[WORKERS_MAX];
static _Atomic uint32_t worker_count;
static _Atomic uint32_t workers_changed = 1;
static __thread uint32_t own_group, own_group_at; /* this thread's group, and as of which change of the table */
/* Phases around the last calls that were pushed to the listener. */
#define CALLS 16384u
static struct {
    _Atomic uint64_t call, phase;
} calls[CALLS];
static pthread_key_t thread_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread struct thread_state self;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void release_chunk(void *state) {
    struct thread_state *t = state;
    if (t->chunk && t->epoch == atomic_load(&ring_epoch)) atomic_store_explicit(&t->chunk->state, CHUNK_FULL, memory_order_release);
    t->chunk = NULL;
}

/* A child shares the parent's pages: it lets go of them, and opens a ring of its own if its agent wants one. */
static void detach_in_child(void) {
    struct ring_header *old = atomic_load(&ring);
    atomic_store(&ring, NULL);
    atomic_fetch_add(&ring_epoch, 1);
    if (old) munmap(old, old->file_bytes);
    memset(&self, 0, sizeof self);
    muted = 0;
    settled_state = 0;
    memset((void *)slots, 0, sizeof slots);
    memset((void *)lately, 0, sizeof lately);
    entry_count = 0;
    pthread_mutex_init(&name_lock, NULL);
    atomic_store(&expected_count, 0);
    announced = 0;
    atomic_store(&followed, 0);
    atomic_store(&worker_count, 0);
    own_group_at = 0;
    pthread_mutex_init(&expected_lock, NULL);
    atomic_store(&listening, 0);
}

static void setup(void) {
    pthread_key_create(&thread_key, release_chunk);
    pthread_atfork(NULL, NULL, detach_in_child);
}

/* Opens `path` as this process's ring of `chunks` chunks. 0, or an errno: ENOSPC where the space cannot be had. */
MOESCOPE_API int moescope_open(const char *path, uint32_t chunks) {
    pthread_once(&once, setup);
    if (atomic_load(&ring)) return EEXIST;
    uint64_t names_bytes = 1u << 20;
    uint64_t chunks_offset = HEADER_BYTES + names_bytes;
    uint64_t bytes = chunks_offset + (uint64_t)chunks * CHUNK_BYTES;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return errno;
    /* Reserve now: a page that cannot be had later would be a SIGBUS in the target. */
    int error = posix_fallocate(fd, 0, (off_t)bytes);
    if (error) {
        close(fd);
        unlink(path);
        return error;
    }
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    error = errno;
    close(fd);
    if (memory == MAP_FAILED) {
        unlink(path);
        return error;
    }
    struct ring_header *h = memory;
    h->version = RING_VERSION;
    h->pid = (uint32_t)getpid();
    h->file_bytes = bytes;
    h->chunk_bytes = CHUNK_BYTES;
    h->chunks = chunks;
    h->chunks_offset = chunks_offset;
    h->names_offset = HEADER_BYTES;
    h->names_bytes = names_bytes;
    memcpy(h->magic, RING_MAGIC, 8);
    atomic_fetch_add(&ring_epoch, 1);
    atomic_store(&ring, h);
    return 0;
}

MOESCOPE_API int moescope_is_open(void) { return atomic_load(&ring) != NULL; }

MOESCOPE_API void moescope_close(void) {
    struct ring_header *h = atomic_load(&ring);
    if (h) atomic_store(&h->closed, 1);
}

MOESCOPE_API int64_t moescope_now_ns(void) { return now_ns(); }

/* Who this process is, as JSON; written whole, guarded by a sequence number that is odd meanwhile. */
MOESCOPE_API int moescope_identity(const char *json, uint32_t bytes) {
    struct ring_header *h = atomic_load(&ring);
    if (!h) return ENODEV;
    if (bytes > HEADER_BYTES - IDENTITY_OFFSET) return E2BIG;
    atomic_fetch_add(&h->identity_seq, 1);
    memcpy((char *)h + IDENTITY_OFFSET, json, bytes);
    atomic_store(&h->identity_bytes, bytes);
    atomic_fetch_add(&h->identity_seq, 1);
    return 0;
}

MOESCOPE_API uint64_t moescope_operators(void) {
    struct ring_header *h = atomic_load(&ring);
    return h ? atomic_load(&h->operators) : 0;
}

MOESCOPE_API uint64_t moescope_phases(void) {
    struct ring_header *h = atomic_load(&ring);
    return h ? atomic_load(&h->phase_ids) : 0;
}

MOESCOPE_API uint64_t moescope_dropped(void) {
    struct ring_header *h = atomic_load(&ring);
    return h ? atomic_load(&h->dropped) : 0;
}

MOESCOPE_API void moescope_add_overhead(uint64_t ns) {
    struct ring_header *h = atomic_load(&ring);
    if (h) atomic_fetch_add(&h->overhead_ns, ns);
}

void moescope_add_dropped(uint64_t records) {
    struct ring_header *h = atomic_load(&ring);
    if (h) atomic_fetch_add(&h->dropped, records);
}

MOESCOPE_API void moescope_mute(int on) { muted = on; }

MOESCOPE_API uint64_t moescope_thread_operators(void) { return thread_operators; }

/* The calling thread has seen to torch's ranges: on as of when it asked, or off. */
MOESCOPE_API void moescope_settle(int on) { settled_state = on ? asked_state : 0; }

/* Windows have opened or closed, or the target profiles: every thread has to see to its ranges again. */
MOESCOPE_API void moescope_unsettle(void) { atomic_fetch_add(&ranges_state, 1); }

/* 1 where this thread's ranges are on as it left them, 0 where it has to see to them. */
MOESCOPE_API int moescope_settled(void) {
    asked_state = atomic_load_explicit(&ranges_state, memory_order_acquire);
    return settled_state == asked_state;
}

MOESCOPE_API void moescope_context(uint64_t context) { atomic_store(&process_context, context); }

/* What a name is: an operator (`aten::mm`), an execution range (`gloo:all_to_all`), a node of the autograd graph (its
 * class's bare name: a user's own bare names come through moescope_phase_begin), or a range that somebody named. */
static uint32_t class_of(const char *s) {
    if (!strncmp(s, "autograd::engine::evaluate_function: ", 37)) return NAME_NODE;
    if (!strcmp(s, "record_param_comms") || !strncmp(s, "ProfilerStep#", 13)) return NAME_NODE;
    const char *p = s;
    while ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || *p == '_') p++;
    if (p != s && !*p) return NAME_NODE;
    if (p == s || p[0] != ':') return NAME_PHASE;
    if (p[1] == ':') return strchr(p, ' ') ? NAME_PHASE : NAME_OPERATOR;
    size_t n = (size_t)(p - s);
    if ((n == 4 && (!strncmp(s, "gloo", 4) || !strncmp(s, "nccl", 4))) || (n == 3 && (!strncmp(s, "mpi", 3) || !strncmp(s, "ucc", 3))))
        return NAME_EXECUTION;
    return NAME_PHASE;
}

struct name_entry *moescope_intern(const char *text) {
    struct ring_header *h = atomic_load_explicit(&ring, memory_order_acquire);
    if (!h || !text) return NULL;
    struct name_entry *_Atomic *last = &lately[((uintptr_t)text >> 4 ^ (uintptr_t)text >> 14) & (LATELY - 1)];
    struct name_entry *known = atomic_load_explicit(last, memory_order_acquire);
    if (known && !strcmp(known->text, text)) return known; /* another text may lie there by now */
    uint64_t hash = 1469598103934665603ull;
    uint32_t length = 0;
    for (; text[length] && length < NAME_MAX_BYTES; length++) hash = (hash ^ (unsigned char)text[length]) * 1099511628211ull;
    uint32_t at = (uint32_t)(hash ^ (hash >> 32)) & (NAME_SLOTS - 1);
    for (uint32_t probe = 0; probe < 64; probe++, at = (at + 1) & (NAME_SLOTS - 1)) {
        struct name_entry *e = atomic_load_explicit(&slots[at], memory_order_acquire);
        if (!e) break;
        if (e->hash == hash && e->length == length && !memcmp(e->text, text, length)) {
            atomic_store_explicit(last, e, memory_order_release);
            return e;
        }
    }
    struct name_entry *found = NULL;
    pthread_mutex_lock(&name_lock);
    at = (uint32_t)(hash ^ (hash >> 32)) & (NAME_SLOTS - 1);
    for (uint32_t probe = 0; probe < 64 && !found; probe++, at = (at + 1) & (NAME_SLOTS - 1)) {
        struct name_entry *e = atomic_load(&slots[at]);
        if (e) {
            if (e->hash == hash && e->length == length && !memcmp(e->text, text, length)) found = e;
            continue;
        }
        uint64_t used = atomic_load(&h->names_used);
        uint64_t need = (8 + (uint64_t)length + 1 + 7) & ~7ull;
        if (entry_count + 1 >= NAME_SLOTS / 2 || used + need > h->names_bytes) break;
        char *out = (char *)h + h->names_offset + used;
        uint32_t id = ++entry_count;
        memcpy(out, &id, 4);
        memcpy(out + 4, &length, 4);
        memcpy(out + 8, text, length);
        atomic_store_explicit(&h->names_used, used + need, memory_order_release);
        found = &entries[id];
        *found = (struct name_entry){.hash = hash, .text = out + 8, .length = length, .id = id};
        char copy[NAME_MAX_BYTES + 1];
        memcpy(copy, text, length);
        copy[length] = 0;
        found->name_class = class_of(copy);
        found->issues = !strncmp(copy, "c10d::", 6);
        atomic_store_explicit(&slots[at], found, memory_order_release);
        break;
    }
    pthread_mutex_unlock(&name_lock);
    if (!found) {
        /* The table is full (a program that makes up names without end): such ranges share entry 0, a nameless phase. */
        entries[0].text = "";
        found = &entries[0];
    }
    return found;
}

int moescope_is_entry(const struct name_entry *entry) { return entry >= entries && entry < entries + NAME_SLOTS; }

/* The calling thread, ready for the ring that is open. */
static struct thread_state *this_thread(void) {
    uint64_t epoch = atomic_load_explicit(&ring_epoch, memory_order_acquire);
    if (self.epoch != epoch) {
        memset(&self, 0, offsetof(struct thread_state, frames));
        self.epoch = epoch;
        pthread_setspecific(thread_key, &self);
    }
    return &self;
}

/* `slot_count` record slots in a row in this thread's chunk, or NULL: dropped and counted. */
static struct record *reserve(struct ring_header *h, uint32_t slot_count) {
    struct thread_state *t = this_thread();
    const uint64_t capacity = sizeof t->chunk->records;
    uint64_t used = t->chunk ? atomic_load_explicit(&t->chunk->used, memory_order_relaxed) : capacity;
    if (used + slot_count * sizeof(struct record) > capacity) {
        if (t->chunk) atomic_store_explicit(&t->chunk->state, CHUNK_FULL, memory_order_release);
        t->chunk = NULL;
        struct chunk *all = (struct chunk *)((char *)h + h->chunks_offset);
        static _Atomic uint32_t hint;
        uint32_t first = atomic_fetch_add(&hint, 1);
        for (uint32_t i = 0; i < h->chunks && !t->chunk; i++) {
            struct chunk *c = &all[(first + i) % h->chunks];
            uint32_t expected = CHUNK_FREE;
            if (atomic_load_explicit(&c->state, memory_order_relaxed) == CHUNK_FREE &&
                atomic_compare_exchange_strong(&c->state, &expected, CHUNK_WRITING))
                t->chunk = c;
        }
        if (!t->chunk) {
            atomic_fetch_add(&h->dropped, 1);
            return NULL;
        }
        t->chunk->tid = (uint32_t)syscall(SYS_gettid);
        if (prctl(PR_GET_NAME, t->chunk->name)) t->chunk->name[0] = 0;
        atomic_store(&t->chunk->used, 0);
        atomic_store(&t->chunk->consumed, 0);
        atomic_store_explicit((_Atomic uint64_t *)&t->chunk->sequence, atomic_fetch_add(&h->sequence, 1) + 1, memory_order_release);
        used = 0;
    }
    return (struct record *)((char *)t->chunk->records + used);
}

static void publish(uint32_t slot_count) {
    atomic_fetch_add_explicit(&self.chunk->used, slot_count * sizeof(struct record), memory_order_release);
}

static void write_record(struct ring_header *h, struct record r) {
    struct record *out = reserve(h, 1);
    if (!out) return;
    *out = r;
    publish(1);
}

/* Removes entry `at`; the lock is held. */
static uint64_t remove_expected(uint32_t at) {
    uint64_t call = expected[at].call;
    uint32_t count = atomic_load(&expected_count) - 1;
    memmove(&expected[at], &expected[at + 1], (count - at) * sizeof expected[0]);
    atomic_store(&expected_count, count);
    return call;
}

/* The group whose calls alone the calling thread executes; 0 where that is not known. */
static uint32_t group_of_thread(void) {
    uint32_t at = atomic_load_explicit(&workers_changed, memory_order_acquire);
    if (own_group_at == at) return own_group;
    uint32_t tid = (uint32_t)syscall(SYS_gettid), group = 0;
    for (uint32_t i = 0, n = atomic_load(&worker_count); i < n && !group; i++)
        if (atomic_load(&workers[i].tid) == tid) group = atomic_load(&workers[i].group);
    own_group = group;
    own_group_at = at;
    return group;
}

/* Tells that thread `tid` executes the calls of this group alone. */
MOESCOPE_API void moescope_worker(uint32_t tid, uint32_t group) {
    pthread_mutex_lock(&expected_lock);
    uint32_t n = atomic_load(&worker_count), at = 0;
    while (at < n && atomic_load(&workers[at].tid) != tid) at++;
    if (at < WORKERS_MAX) {
        atomic_store(&workers[at].group, group);
        atomic_store(&workers[at].tid, tid);
        if (at == n) atomic_store(&worker_count, n + 1);
        atomic_fetch_add(&workers_changed, 1);
    }
    pthread_mutex_unlock(&expected_lock);
}

/* The oldest call of the group that waits for a range of this name: its queue begins its work in the order of issue. */
static uint64_t take_expected(const struct name_entry *name, uint32_t group) {
    if (!atomic_load(&expected_count)) return 0;
    uint64_t call = 0;
    pthread_mutex_lock(&expected_lock);
    for (uint32_t i = 0, n = atomic_load(&expected_count); i < n && !call; i++)
        if (expected[i].name == name && (!group || !expected[i].group || expected[i].group == group)) call = remove_expected(i);
    pthread_mutex_unlock(&expected_lock);
    return call;
}

/* The number of a call that is about to be issued, or of a range that nobody has told of. */
MOESCOPE_API uint64_t moescope_next_call(void) { return atomic_fetch_add(&call_numbers, 1) + 1; }

/* Numbers that were given. */
MOESCOPE_API uint64_t moescope_calls(void) { return atomic_load_explicit(&call_numbers, memory_order_relaxed); }

/* Tells that a call of a group is about to be issued, and by what name its execution range will begin. 0, or an errno. */
MOESCOPE_API int moescope_expect(const char *name, uint64_t call, uint32_t group) {
    struct name_entry *entry = moescope_intern(name);
    if (!entry) return ENODEV;
    pthread_mutex_lock(&expected_lock);
    uint32_t count = atomic_load(&expected_count);
    int error = count == EXPECTED_MAX ? ENOSPC : 0;
    if (!error) {
        expected[count].name = entry;
        expected[count].call = call;
        expected[count].group = group;
        atomic_store(&expected_count, count + 1);
    }
    pthread_mutex_unlock(&expected_lock);
    return error;
}

/* What the calling thread issues from now on comes from Python, or no longer. */
MOESCOPE_API void moescope_announce(int on) { announced = on; }

/* Whether calls that C++ issues leave records of that, where torch's ranges are on. */
MOESCOPE_API void moescope_follow_calls(int on) { atomic_store(&following, on); }

/* How many have. */
MOESCOPE_API uint64_t moescope_followed(void) { return atomic_load(&followed); }

/* Takes an expected call back; 0 where its range has begun already. */
MOESCOPE_API int moescope_withdraw(uint64_t call) {
    int found = 0;
    pthread_mutex_lock(&expected_lock);
    for (uint32_t i = 0, n = atomic_load(&expected_count); i < n && !found; i++)
        if (expected[i].call == call) {
            remove_expected(i);
            found = 1;
        }
    pthread_mutex_unlock(&expected_lock);
    return found;
}

static struct frame *push(struct name_entry *name) {
    struct thread_state *t = this_thread();
    if (t->depth >= STACK_FRAMES) {
        t->depth++;
        return NULL;
    }
    struct frame *f = &t->frames[t->depth++];
    *f = (struct frame){.name = name, .outer_phase = t->phase};
    return f;
}

/* Brings the listener up to this thread's phases, after it was switched. */
static void catch_up(struct thread_state *t, uint64_t state) {
    const struct phase_listener *listener = atomic_load(&phase_listener);
    if (!listener) return;
    for (; t->pushed; t->pushed--) listener->pop();
    t->heard = state;
    for (uint32_t i = 0; (state & 1) && i < t->depth && i < STACK_FRAMES; i++)
        if (t->frames[i].phase_id) {
            listener->push(t->frames[i].phase_id);
            t->pushed++;
        }
}

/* The phase's frame lies on the stack already. */
static void tell_open(struct thread_state *t, uint64_t id) {
    uint64_t state = atomic_load_explicit(&listening, memory_order_acquire);
    if (t->heard != state) {
        catch_up(t, state);
    } else if (state & 1) {
        atomic_load(&phase_listener)->push(id);
        t->pushed++;
    }
}

/* The phase's frame has left the stack. */
static void tell_closed(struct thread_state *t) {
    uint64_t state = atomic_load_explicit(&listening, memory_order_acquire);
    if (t->heard != state) {
        catch_up(t, state);
    } else if (t->pushed) {
        atomic_load(&phase_listener)->pop();
        t->pushed--;
    }
}

/* A call is about to be issued on this thread: what it launches meanwhile is told with its number. 1 where the listener
 * is on; only then is it to be ended. */
MOESCOPE_API int moescope_call_begin(uint64_t call) {
    uint64_t state = atomic_load_explicit(&listening, memory_order_acquire);
    struct thread_state *t = this_thread();
    if (t->heard != state) catch_up(t, state);
    if (!(state & 1)) return 0;
    atomic_store_explicit(&calls[call % CALLS].phase, self.phase, memory_order_relaxed);
    atomic_store_explicit(&calls[call % CALLS].call, call, memory_order_release);
    atomic_load(&phase_listener)->push(CALL_MARK | call);
    self.pushed++;
    self.call_heard = state;
    return 1;
}

MOESCOPE_API void moescope_call_end(void) {
    uint64_t state = atomic_load_explicit(&listening, memory_order_acquire);
    if (self.heard != state) {
        catch_up(&self, state);
    } else if (self.call_heard == state && self.pushed) { /* else it went with the others when the listener was switched */
        atomic_load(&phase_listener)->pop();
        self.pushed--;
    }
    self.call_heard = 0;
}

/* The innermost phase around a call that was pushed lately; 0 for none. */
uint64_t moescope_call_phase(uint64_t call) {
    if (atomic_load_explicit(&calls[call % CALLS].call, memory_order_acquire) != call) return 0;
    return atomic_load_explicit(&calls[call % CALLS].phase, memory_order_relaxed);
}

/* Switches `listener` on, or with NULL the one there is off; other threads notice at their next phase. */
void moescope_listen(const struct phase_listener *listener) {
    uint64_t state = atomic_load(&listening);
    if (listener) atomic_store(&phase_listener, listener);
    if ((state & 1) == (listener == NULL)) atomic_store(&listening, ++state);
    if (self.heard != state && self.epoch == atomic_load(&ring_epoch)) catch_up(&self, state);
}

static void open_phase(struct ring_header *h, struct frame *f, uint64_t context) {
    f->phase_id = atomic_fetch_add_explicit(&h->phase_ids, 1, memory_order_relaxed) + 1;
    f->context = context;
    self.phase = f->phase_id;
    self.phases_open++;
    tell_open(&self, f->phase_id);
}

/* What a compiled graph does up to now without an operator: its own loops, of which torch tells nothing. */
static void between(struct ring_header *h, int64_t now) {
    if (!self.graph || !self.in_window || muted || now - self.between_ns < BETWEEN_NS) return;
    write_record(h, (struct record){.type = RECORD_OPERATOR, .flags = FLAG_BETWEEN, .name = self.graph, .start_ns = self.between_ns,
                                    .dur_ns = now - self.between_ns, .a = self.phase});
    atomic_fetch_add_explicit(&h->operators, 1, memory_order_relaxed);
}

/* A compiled graph begins on this thread, inside the one whose name is returned, and ends by giving that back. One that
 * an operator calls is part of that. */
MOESCOPE_API uint32_t moescope_graph_begin(const char *name) {
    struct ring_header *h = atomic_load_explicit(&ring, memory_order_acquire);
    struct thread_state *t = this_thread();
    uint32_t outer = t->graph;
    if (!h || t->operators_open) return outer;
    int64_t now = now_ns();
    between(h, now);
    t->graph = moescope_name(name);
    t->between_ns = now;
    return outer;
}

MOESCOPE_API void moescope_graph_end(uint32_t outer) {
    struct ring_header *h = atomic_load_explicit(&ring, memory_order_acquire);
    struct thread_state *t = this_thread();
    if (!h || t->operators_open) return;
    int64_t now = now_ns();
    between(h, now);
    t->graph = outer;
    t->between_ns = now;
}

/* A window of this thread opens or closes, maybe while a graph runs. */
MOESCOPE_API void moescope_window(int open) {
    struct ring_header *h = atomic_load_explicit(&ring, memory_order_acquire);
    struct thread_state *t = this_thread();
    int64_t now = now_ns();
    if (h && !open && !t->operators_open) between(h, now);
    t->in_window = open != 0;
    t->between_ns = now;
}

static int is_between_two(const struct name_entry *name) {
    return name->length == 9 && (!memcmp(name->text, "gloo:send", 9) || !memcmp(name->text, "gloo:recv", 9));
}

static int issues_calls(const struct name_entry *name) {
    return name->issues || (name->length == 18 && !memcmp(name->text, "record_param_comms", 18));
}

/* Which frame a range's end belongs to: the top one, but that a send or receive begins as it is issued and ends as it is
 * waited for. The operator that issues it ends before it, and phases that the model opened since stay open. The depth
 * for an end whose begin was not seen. */
static uint32_t ending(void) {
    uint32_t top = self.depth - 1, at = top;
    if (self.frames[top].from_model) {
        while (at > 0 && self.frames[at].from_model) at--;
        return self.frames[at].name->name_class == NAME_EXECUTION ? at : self.depth;
    }
    while (at > 0 && is_between_two(self.frames[at].name)) at--;
    return at != top && !self.frames[at].from_model && issues_calls(self.frames[at].name) ? at : top;
}

/* Takes a frame out of the middle of the stack. */
static void take_out(uint32_t at) {
    memmove(&self.frames[at], &self.frames[at + 1], (self.depth - at - 1) * sizeof self.frames[0]);
    self.depth--;
}

/* An execution that ends on another thread than it began on leaves its frame: a stack that fills up lets the oldest go. */
static void let_go_of_execution(void) {
    if (self.depth < STACK_FRAMES / 2 || self.depth > STACK_FRAMES) return;
    for (uint32_t i = 0; i < self.depth; i++)
        if (self.frames[i].name->name_class == NAME_EXECUTION) {
            take_out(i);
            return;
        }
}

void moescope_range_begin(struct name_entry *name) {
    struct ring_header *h = atomic_load_explicit(&ring, memory_order_acquire);
    if (!h || !name) return;
    if (name->name_class == NAME_EXECUTION) let_go_of_execution();
    struct frame *outer = self.depth && self.depth <= STACK_FRAMES ? &self.frames[self.depth - 1] : NULL;
    struct frame *f = push(name);
    if (!f) return;
    switch (name->name_class) {
    case NAME_OPERATOR:
        self.operators_open++;
        f->issues = name->issues && !announced && atomic_load_explicit(&following, memory_order_relaxed);
        break;
    case NAME_PHASE:
        /* Some operators name inner ranges without a namespace (`detach`): no user's range lies right inside an operator. */
        /* A graph node runs under its evaluate_function range and bears the same name. */
        if (outer && (outer->name->name_class == NAME_OPERATOR || (outer->from_model && outer->name == name) ||
                      (outer->name->name_class == NAME_NODE && outer->name->length > name->length &&
                       !memcmp(outer->name->text + outer->name->length - name->length, name->text, name->length))))
            f->quiet = 1;
        else
            open_phase(h, f, atomic_load_explicit(&process_context, memory_order_relaxed));
        break;
    case NAME_EXECUTION:
        f->call = take_expected(name, group_of_thread());
        f->untold = !f->call;
        if (f->untold) f->call = moescope_next_call();
        break;
    default:
        break;
    }
    f->start_ns = now_ns();
    if (self.graph && self.operators_open == 1 && name->name_class == NAME_OPERATOR) between(h, f->start_ns);
}

static void end_frame(struct ring_header *h, struct frame *f, int64_t end) {
    struct thread_state *t = &self;
    int64_t dur = end - f->start_ns;
    if (f->phase_id) {
        t->phase = f->outer_phase;
        t->phases_open--;
        tell_closed(t);
        write_record(h, (struct record){.type = RECORD_PHASE, .depth = (uint16_t)t->phases_open, .name = f->name->id, .start_ns = f->start_ns,
                                        .dur_ns = dur, .a = f->phase_id, .b = f->outer_phase, .c = f->context});
        return;
    }
    if (f->quiet || f->name->name_class == NAME_NODE) return;
    if (f->name->name_class == NAME_EXECUTION) {
        write_record(h, (struct record){.type = RECORD_EXECUTION, .name = f->name->id, .start_ns = f->start_ns, .dur_ns = dur, .a = t->phase, .b = f->call, .c = group_of_thread(),
                                        .flags = f->untold ? FLAG_UNTOLD : 0});
        return;
    }
    if (!--t->operators_open) t->between_ns = end;
    if (f->issues) {
        atomic_fetch_add(&followed, 1);
        write_record(h, (struct record){.type = RECORD_CALL, .name = f->name->id, .start_ns = f->start_ns, .dur_ns = dur, .a = t->phase, .b = (uint64_t)pthread_self()});
    }
    for (uint32_t i = t->depth; i-- > 0;)
        if (t->frames[i].name->name_class == NAME_OPERATOR) {
            t->frames[i].child_ns += (uint64_t)dur;
            break;
        }
    thread_operators++;
    if (muted) return;
    int composite = f->child_ns * 2 >= (uint64_t)dur && f->child_ns;
    /* The reader needs what is a kernel, and the root, which tells that the tree is whole. */
    if (!composite || !t->operators_open)
        write_record(h, (struct record){.type = RECORD_OPERATOR, .flags = composite ? FLAG_COMPOSITE : 0, .depth = (uint16_t)t->operators_open,
                                        .name = f->name->id, .start_ns = f->start_ns, .dur_ns = dur, .a = t->phase});
    atomic_fetch_add_explicit(&h->operators, 1, memory_order_relaxed);
}

void moescope_range_end(void) {
    int64_t end = now_ns();
    struct ring_header *h = atomic_load_explicit(&ring, memory_order_acquire);
    if (!h || self.epoch != atomic_load(&ring_epoch) || !self.depth) return;
    if (self.depth > STACK_FRAMES) {
        self.depth--;
        return;
    }
    uint32_t at = ending();
    if (at == self.depth) return;
    if (at == self.depth - 1) {
        end_frame(h, &self.frames[--self.depth], end);
        return;
    }
    struct frame ended = self.frames[at];
    take_out(at);
    end_frame(h, &ended, end);
}

/* Opens a range that the model or a patched `record_function` names; place: its layer and micro-batch, which are added
 * to the process's stage and step. */
MOESCOPE_API uint64_t moescope_phase_begin(const char *name, uint64_t place) {
    struct ring_header *h = atomic_load_explicit(&ring, memory_order_acquire);
    if (!h) return 0;
    struct name_entry *entry = moescope_intern(name);
    struct frame *f = push(entry);
    if (!f) {
        self.depth--; /* phase_end will not come for id 0 */
        return 0;
    }
    f->from_model = 1;
    open_phase(h, f, atomic_load_explicit(&process_context, memory_order_relaxed) | place);
    f->start_ns = now_ns();
    return f->phase_id;
}

/* Ends the range `id`, and whatever was left open above it on this thread. */
MOESCOPE_API void moescope_phase_end(uint64_t id) {
    int64_t end = now_ns();
    struct ring_header *h = atomic_load_explicit(&ring, memory_order_acquire);
    if (!h || self.epoch != atomic_load(&ring_epoch) || !id) return;
    uint32_t depth = self.depth < STACK_FRAMES ? self.depth : STACK_FRAMES;
    uint32_t found = depth;
    while (found > 0 && self.frames[found - 1].phase_id != id) found--;
    if (!found) return; /* opened on another thread */
    while (self.depth >= found) {
        uint32_t top = self.depth--;
        if (top <= STACK_FRAMES) end_frame(h, &self.frames[top - 1], end);
    }
}

MOESCOPE_API uint64_t moescope_current_phase(void) { return self.epoch == atomic_load(&ring_epoch) ? self.phase : 0; }

/* A record with no nesting of its own: steps, windows, operators read elsewhere. `kind` = type | flags << 8 | depth << 16. */
MOESCOPE_API void moescope_record(uint32_t kind, const char *name, int64_t start_ns, int64_t dur_ns, uint64_t a, uint64_t b, uint64_t c) {
    struct ring_header *h = atomic_load_explicit(&ring, memory_order_acquire);
    if (!h) return;
    struct name_entry *entry = name ? moescope_intern(name) : NULL;
    uint8_t type = (uint8_t)kind;
    if (type == RECORD_STEP && !c) c = atomic_load(&process_context);
    if (type == RECORD_OPERATOR) atomic_fetch_add_explicit(&h->operators, 1, memory_order_relaxed);
    write_record(h, (struct record){.type = type, .flags = (uint8_t)(kind >> 8), .depth = (uint16_t)(kind >> 16), .name = entry ? entry->id : 0, .start_ns = start_ns, .dur_ns = dur_ns, .a = a, .b = b, .c = c});
}

MOESCOPE_API void moescope_done(uint64_t call) {
    int64_t now = now_ns();
    struct ring_header *h = atomic_load_explicit(&ring, memory_order_acquire);
    if (h) write_record(h, (struct record){.type = RECORD_DONE, .start_ns = now, .a = call});
}

/* The number of a name in the table; 0 where it is full. */
MOESCOPE_API uint32_t moescope_name(const char *text) {
    struct name_entry *entry = moescope_intern(text);
    return entry ? entry->id : 0;
}

/* `bytes` of payload under `kind`, in one piece. 0, or an errno. */
MOESCOPE_API int moescope_blob(const char *kind, const void *payload, uint32_t bytes) {
    struct ring_header *h = atomic_load_explicit(&ring, memory_order_acquire);
    if (!h) return ENODEV;
    uint32_t slot_count = 1 + (uint32_t)((bytes + sizeof(struct record) - 1) / sizeof(struct record));
    if (slot_count * sizeof(struct record) > sizeof self.chunk->records) {
        atomic_fetch_add(&h->dropped, 1);
        return E2BIG;
    }
    struct name_entry *entry = moescope_intern(kind);
    if (!entry || !entry->id) { /* the table is full: nobody could tell what it is */
        atomic_fetch_add(&h->dropped, 1);
        return ENOSPC;
    }
    struct record *out = reserve(h, slot_count);
    if (!out) return ENOSPC;
    *out = (struct record){.type = RECORD_BLOB, .name = entry->id, .start_ns = now_ns(), .dur_ns = bytes, .a = self.phase, .b = atomic_load(&process_context)};
    memcpy(out + 1, payload, bytes);
    publish(slot_count);
    return 0;
}

/* Writes `count` operator records as fast as it can: for the benchmark of the ring, never in a run. */
MOESCOPE_API void moescope_burst(const char *name, uint64_t count) {
    struct name_entry *entry = moescope_intern(name);
    for (uint64_t i = 0; i < count; i++) {
        moescope_range_begin(entry);
        moescope_range_end();
    }
}
