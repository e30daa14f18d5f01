/* The ring: a memory-mapped file a process, 64 KB chunks a thread, records of 48 bytes.
 *
 * One writer a chunk (the thread that claimed it), one reader a file (the sidecar). `used` is stored with release order
 * after the record is whole, so a reader sees whole records only, also after SIGKILL: the pages outlive the process.
 * A full ring drops the newest records and counts them; a writer never waits.
 * The layout is mirrored in collectors/ring_reader.py. */
#ifndef MOESCOPE_RING_H
#define MOESCOPE_RING_H

#include <stdatomic.h>
#include <stdint.h>

#define MOESCOPE_API __attribute__((visibility("default")))
#define RING_MAGIC "MOESRING"
#define RING_VERSION 1u
#define HEADER_BYTES 4096u
#define IDENTITY_OFFSET 512u
#define CHUNK_BYTES 65536u
#define CHUNK_HEADER_BYTES 64u
#define NAME_MAX_BYTES 480u

enum record_type {
    RECORD_OPERATOR = 1, /* name, start, dur, a = phase id, b = flops or 0, c = name of its shapes or 0 */
    RECORD_PHASE = 2,    /* name, start, dur, a = id, b = parent id, c = context */
    RECORD_EXECUTION = 3,/* a backend's execution range (`gloo:all_to_all`): name, start, dur, a = phase id, b = call id,
                            c = name of the group whose thread it is on, or 0 */
    RECORD_BLOB = 4,     /* name = kind, never 0, start = time, dur = payload bytes, a = phase id, b = context; payload
                            follows in slots of its own */
    RECORD_DONE = 5,     /* start = completion time, a = call id: on the thread that completed it */
    RECORD_STEP = 6,     /* name = source, start, dur, c = context */
    RECORD_WINDOW = 7,   /* name = source, start, dur */
    RECORD_CALL = 8      /* a collective that C++ issued: name = operator, start, dur of the issue, a = phase id, b = pthread */
};

enum record_flag {
    FLAG_COMPOSITE = 1, /* operators below cover at least half of it */
    FLAG_UNTOLD = 2,    /* of an execution: nobody has told its call, whose id was made for it */
    FLAG_BETWEEN = 4    /* no operator: time of a compiled graph in which it runs none */
};

enum chunk_state { CHUNK_FREE = 0, CHUNK_WRITING = 1, CHUNK_FULL = 2 };

enum name_class { NAME_PHASE = 0, NAME_OPERATOR = 1, NAME_EXECUTION = 2, NAME_NODE = 3 };

struct record {
    uint8_t type;
    uint8_t flags;
    uint16_t depth;
    uint32_t name;
    int64_t start_ns;
    int64_t dur_ns;
    uint64_t a, b, c;
};

struct chunk {
    _Atomic uint32_t state;
    uint32_t tid;
    uint64_t sequence;          /* order of claims in the process */
    _Atomic uint64_t used;      /* bytes of whole records behind the header */
    _Atomic uint64_t consumed;  /* bytes that the reader has stored safely */
    char name[16];              /* the thread's, when it claimed the chunk */
    uint64_t reserved[2];
    struct record records[(CHUNK_BYTES - CHUNK_HEADER_BYTES) / sizeof(struct record)];
};

struct ring_header {
    char magic[8];
    uint32_t version;
    uint32_t pid;
    uint64_t file_bytes;
    uint32_t chunk_bytes;
    uint32_t chunks;
    uint64_t chunks_offset;
    uint64_t names_offset;
    uint64_t names_bytes;
    _Atomic uint64_t names_used;
    _Atomic uint64_t dropped;
    _Atomic uint64_t sequence;
    _Atomic uint64_t phase_ids;
    _Atomic uint64_t operators;      /* operators recorded so far, for the cost */
    _Atomic uint64_t identity_bytes; /* JSON at IDENTITY_OFFSET, written by the agent */
    _Atomic uint64_t identity_seq;   /* odd while the identity is being written */
    _Atomic uint64_t overhead_ns;    /* time that recording is reckoned to have cost the process */
    _Atomic uint64_t closed;         /* 1 after a normal exit */
};

struct name_entry {
    uint64_t hash;
    const char *text;
    uint32_t length;
    uint32_t id;
    uint32_t name_class;
    int issues; /* whether it is an operator that issues a collective */
};

/* Used by itt.c. */
struct name_entry *moescope_intern(const char *text);
int moescope_is_entry(const struct name_entry *entry);
void moescope_range_begin(struct name_entry *name);
void moescope_range_end(void);

/* Used by device.c and cupti.c. */
#define CALL_MARK (1ull << 63) /* in an id: it is the number of a collective, not a phase */
struct phase_listener {
    void (*push)(uint64_t id); /* a phase of the calling thread began, or a collective is being issued there */
    void (*pop)(void);         /* the innermost one pushed there ended */
};
uint64_t moescope_call_phase(uint64_t call);
void moescope_listen(const struct phase_listener *listener);
void moescope_add_dropped(uint64_t records);
void moescope_add_overhead(uint64_t ns);
int64_t moescope_now_ns(void);
int moescope_is_open(void);

/* Used by module.c. */
uint64_t moescope_phase_begin(const char *name, uint64_t place);
void moescope_phase_end(uint64_t id);
uint32_t moescope_name(const char *text);
int moescope_blob(const char *kind, const void *payload, uint32_t bytes);
int moescope_expect(const char *name, uint64_t call, uint32_t group);
uint64_t moescope_next_call(void);
void moescope_announce(int on);
void moescope_mute(int on);
uint64_t moescope_thread_operators(void);
int moescope_settled(void);
int moescope_call_begin(uint64_t call);
void moescope_call_end(void);

#endif
