#ifndef STORE_H
#define STORE_H
#include <stddef.h>

#define KEY_BYTES 32
#define VALUE_BYTES 64

enum store_result { STORE_OK, STORE_MISSING, STORE_FULL, STORE_REFUSED };

enum store_result store_set(const char *key, const char *value);
enum store_result store_get(const char *key, char *value, size_t size);
enum store_result store_increment(const char *key, long *result);
long store_refused(void);

#endif
