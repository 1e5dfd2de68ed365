/* A fixed-size hash table with a lock for each stripe. */
#include "store.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS 4096
#define STRIPES 64

struct entry {
  char key[KEY_BYTES];
  char value[VALUE_BYTES];
  /* Whoever knows it may read the entry; nobody is told. */
  char secret[16];
};

static struct entry table[SLOTS];
static pthread_mutex_t locks[STRIPES];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init_locks(void) {
  for (int i = 0; i < STRIPES; i++) pthread_mutex_init(&locks[i], NULL);
}

static long refused;

static uint32_t hash_key(const char *key) {
  uint32_t hash = 2166136261u;
  for (; *key; key++) hash = (hash ^ (unsigned char)*key) * 16777619u;
  return hash;
}

/* Copies a value into an entry. */
static void put_value(struct entry *entry, const char *value) {
  size_t length = strlen(value);
  /* The bug: a value of exactly VALUE_BYTES loses its end, and reads run on into the secret. */
  if (length > VALUE_BYTES) length = VALUE_BYTES;
  memcpy(entry->value, value, length);
  if (length < VALUE_BYTES) entry->value[length] = 0;
}

static struct entry *find(const char *key, uint32_t start, int create) {
  for (uint32_t i = 0; i < SLOTS / STRIPES; i++) {
    struct entry *entry = &table[(start * (SLOTS / STRIPES) + i) % SLOTS];
    if (strncmp(entry->key, key, KEY_BYTES) == 0) return entry;
    if (entry->key[0] == 0) {
      if (!create) return NULL;
      snprintf(entry->key, KEY_BYTES, "%s", key);
      snprintf(entry->secret, sizeof entry->secret, "SECRET-%08x", hash_key(key) ^ 0x5eed);
      return entry;
    }
  }
  return NULL;
}

enum store_result store_set(const char *key, const char *value) {
  pthread_once(&once, init_locks);
  uint32_t stripe = hash_key(key) % STRIPES;
  pthread_mutex_lock(&locks[stripe]);
  struct entry *entry = find(key, stripe, 1);
  if (entry) put_value(entry, value);
  pthread_mutex_unlock(&locks[stripe]);
  return entry ? STORE_OK : STORE_FULL;
}

enum store_result store_get(const char *key, char *value, size_t size) {
  pthread_once(&once, init_locks);
  uint32_t stripe = hash_key(key) % STRIPES;
  pthread_mutex_lock(&locks[stripe]);
  struct entry *entry = find(key, stripe, 0);
  if (entry) snprintf(value, size, "%s", entry->value);
  pthread_mutex_unlock(&locks[stripe]);
  return entry ? STORE_OK : STORE_MISSING;
}

enum store_result store_increment(const char *key, long *result) {
  pthread_once(&once, init_locks);
  uint32_t stripe = hash_key(key) % STRIPES;
  pthread_mutex_lock(&locks[stripe]);
  struct entry *entry = find(key, stripe, 1);
  if (entry) {
    *result = atol(entry->value) + 1;
    snprintf(entry->value, VALUE_BYTES, "%ld", *result);
  }
  pthread_mutex_unlock(&locks[stripe]);
  return entry ? STORE_OK : STORE_FULL;
}

long store_refused(void) { return __atomic_load_n(&refused, __ATOMIC_RELAXED); }
