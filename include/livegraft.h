/* For the code of patches: shadow variables, as the kernel's livepatch has them (Documentation/livepatch/shadow-vars.rst).
 *
 * A shadow variable attaches data to an object of the program without changing its layout: it is found by the address of the
 * object and a number that says what it is. It lives from patch to patch until it is freed, also when all patches are
 * removed. Free it when the object is freed: another object at the same address would inherit it.
 *
 * All functions may be called by any thread at any time, but not in a signal handler. Constructors and destructors run under
 * the lock: they must not call functions of this file. The memory comes from the program's own calloc() and is aligned
 * for any type.
 *
 * In code of a kernel (__KERNEL__ is defined) the variables are the kernel's own, by the same functions: they need CONFIG_LIVEPATCH,
 * and may be used wherever kmalloc(size, GFP_ATOMIC) may.
 *
 * livegraft build has the folder of this file on the include path: #include <livegraft.h>. See docs/patch-code.md. */
#ifndef LIVEGRAFT_H
#define LIVEGRAFT_H

/* Fills in new data. Anything but 0 gives the variable up. */
typedef int (*livegraft_shadow_constructor)(void *object, void *data, void *argument);
/* Called before the data is freed. */
typedef void (*livegraft_shadow_destructor)(void *object, void *data);

#ifdef __KERNEL__

/* How memory is asked for; a file that does without the kernel's headers defines it itself. */
#ifndef LIVEGRAFT_GFP
#include <linux/gfp.h>
#define LIVEGRAFT_GFP GFP_ATOMIC
#endif

/* As include/linux/livepatch.h declares them. */
extern void *klp_shadow_get(void *object, unsigned long id);
extern void *klp_shadow_alloc(void *object, unsigned long id, __SIZE_TYPE__ size, unsigned int gfp,
                              livegraft_shadow_constructor constructor, void *argument);
extern void *klp_shadow_get_or_alloc(void *object, unsigned long id, __SIZE_TYPE__ size, unsigned int gfp,
                                     livegraft_shadow_constructor constructor, void *argument);
extern void klp_shadow_free(void *object, unsigned long id, livegraft_shadow_destructor destructor);
extern void klp_shadow_free_all(unsigned long id, livegraft_shadow_destructor destructor);

#define livegraft_shadow_get(object, id) klp_shadow_get(object, id)
#define livegraft_shadow_alloc(object, id, size, constructor, argument) \
  klp_shadow_alloc(object, id, size, LIVEGRAFT_GFP, constructor, argument)
#define livegraft_shadow_get_or_alloc(object, id, size, constructor, argument) \
  klp_shadow_get_or_alloc(object, id, size, LIVEGRAFT_GFP, constructor, argument)
#define livegraft_shadow_free(object, id, destructor) klp_shadow_free(object, id, destructor)
#define livegraft_shadow_free_all(id, destructor) klp_shadow_free_all(id, destructor)

#else

#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#define LIVEGRAFT_SHADOW_BUCKETS 504

struct livegraft_shadow_node {
  struct livegraft_shadow_node *next;
  void *object;
  unsigned long id;
  unsigned long unused;
  /* The data follows. */
};

/* One page that livegraft maps once in a process; all patches share it. Zeros to begin with. */
struct livegraft_shadow_table {
  /* Process id of the holder: one that fork left behind is of another process, and holds nothing. */
  int holder;
  struct livegraft_shadow_node *buckets[LIVEGRAFT_SHADOW_BUCKETS];
};

#define LIVEGRAFT_INTERNAL static __attribute__((unused, noinline))

/* livegraft binds this name when it loads a patch. Through a table of addresses, since the page may be farther away than
 * 2 GiB; weak, since the build of the tree links what it compiles. */
LIVEGRAFT_INTERNAL struct livegraft_shadow_table *livegraft_shadow_table_(void) {
  struct livegraft_shadow_table *table;
  __asm__(".weak livegraft_shadow_table\n\tmovq livegraft_shadow_table@GOTPCREL(%%rip), %0" : "=r"(table));
  return table;
}

LIVEGRAFT_INTERNAL void livegraft_shadow_lock_(void) {
  int self = (int)getpid();
  for (;;) {
    int holder = 0;
    int *lock = &livegraft_shadow_table_()->holder;
    if (__atomic_compare_exchange_n(lock, &holder, self, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
    /* Every change of a list is one store, so a holder that fork did not copy has left whole lists. */
    if (holder != self && __atomic_compare_exchange_n(lock, &holder, self, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
    sched_yield();
  }
}

LIVEGRAFT_INTERNAL void livegraft_shadow_unlock_(void) {
  __atomic_store_n(&livegraft_shadow_table_()->holder, 0, __ATOMIC_RELEASE);
}

/* Where the pointer to the variable is, or to the end of its list. */
LIVEGRAFT_INTERNAL struct livegraft_shadow_node **livegraft_shadow_find_(void *object, unsigned long id) {
  unsigned long hash = ((unsigned long)object >> 4) * 0x9e3779b97f4a7c15UL;
  struct livegraft_shadow_node **at = &livegraft_shadow_table_()->buckets[(hash >> 40) % LIVEGRAFT_SHADOW_BUCKETS];
  while (*at && ((*at)->object != object || (*at)->id != id)) at = &(*at)->next;
  return at;
}

LIVEGRAFT_INTERNAL void *livegraft_shadow_make_(void *object, unsigned long id, size_t size,
                                                livegraft_shadow_constructor constructor, void *argument,
                                                int may_exist) {
  struct livegraft_shadow_node *node, **at;
  void *data = NULL;
  if (size > (size_t)-1 / 2) return NULL;
  livegraft_shadow_lock_();
  at = livegraft_shadow_find_(object, id);
  if (*at) {
    if (may_exist) data = *at + 1;
  } else if ((node = calloc(1, sizeof *node + size))) {
    node->object = object;
    node->id = id;
    if (constructor && constructor(object, node + 1, argument)) {
      free(node);
    } else {
      data = node + 1;
      __atomic_store_n(at, node, __ATOMIC_RELEASE);
    }
  }
  livegraft_shadow_unlock_();
  return data;
}

LIVEGRAFT_INTERNAL void livegraft_shadow_remove_(struct livegraft_shadow_node **at,
                                                 livegraft_shadow_destructor destructor) {
  struct livegraft_shadow_node *node = *at;
  __atomic_store_n(at, node->next, __ATOMIC_RELEASE);
  if (destructor) destructor(node->object, node + 1);
  free(node);
}

/* The data of a variable, NULL when there is none. */
LIVEGRAFT_INTERNAL void *livegraft_shadow_get(void *object, unsigned long id) {
  struct livegraft_shadow_node *node;
  livegraft_shadow_lock_();
  node = *livegraft_shadow_find_(object, id);
  livegraft_shadow_unlock_();
  return node ? node + 1 : NULL;
}

/* Makes a variable of size bytes, zeros before the constructor (may be NULL). NULL when it exists already, or can't be made. */
LIVEGRAFT_INTERNAL void *livegraft_shadow_alloc(void *object, unsigned long id, size_t size,
                                                livegraft_shadow_constructor constructor, void *argument) {
  return livegraft_shadow_make_(object, id, size, constructor, argument, 0);
}

/* The same, but what exists is returned as it is. Of several threads one constructs. */
LIVEGRAFT_INTERNAL void *livegraft_shadow_get_or_alloc(void *object, unsigned long id, size_t size,
                                                       livegraft_shadow_constructor constructor, void *argument) {
  return livegraft_shadow_make_(object, id, size, constructor, argument, 1);
}

/* Frees the variable of one object; nothing happens when there is none. */
LIVEGRAFT_INTERNAL void livegraft_shadow_free(void *object, unsigned long id, livegraft_shadow_destructor destructor) {
  struct livegraft_shadow_node **at;
  livegraft_shadow_lock_();
  at = livegraft_shadow_find_(object, id);
  if (*at) livegraft_shadow_remove_(at, destructor);
  livegraft_shadow_unlock_();
}

/* Frees the variables of this number of all objects. */
LIVEGRAFT_INTERNAL void livegraft_shadow_free_all(unsigned long id, livegraft_shadow_destructor destructor) {
  int i;
  livegraft_shadow_lock_();
  for (i = 0; i < LIVEGRAFT_SHADOW_BUCKETS; i++) {
    struct livegraft_shadow_node **at = &livegraft_shadow_table_()->buckets[i];
    while (*at) {
      if ((*at)->id == id) livegraft_shadow_remove_(at, destructor);
      else at = &(*at)->next;
    }
  }
  livegraft_shadow_unlock_();
}

#endif /* __KERNEL__ */

/* Callbacks and states: docs/patch-code.md. Each macro stands once, at file level, with a semicolon behind it. */

/* int function(void): before the patch changes anything. Anything but 0 vetoes the patch. */
#define LIVEGRAFT_PRE_PATCH(function) LIVEGRAFT_CALLBACK_(pre_patch, int, function)
/* void function(void): all threads run the new version. */
#define LIVEGRAFT_POST_PATCH(function) LIVEGRAFT_CALLBACK_(post_patch, void, function)
/* void function(void): the patch is about to be removed. */
#define LIVEGRAFT_PRE_UNPATCH(function) LIVEGRAFT_CALLBACK_(pre_unpatch, void, function)
/* void function(void): no thread runs the new version any more. */
#define LIVEGRAFT_POST_UNPATCH(function) LIVEGRAFT_CALLBACK_(post_unpatch, void, function)

#define LIVEGRAFT_CALLBACK_(kind, type, function)                                                         \
  static type (*livegraft_##kind##_callback_)(void)                                                       \
      __attribute__((section(".livegraft.callbacks." #kind), used)) = function

/* A change that the patch makes to the state of the program, beyond its code. */
struct livegraft_state {
  unsigned long id;
  unsigned int version;
  /* For the patch's own use. */
  void *data;
  /* The same state in the newest patch below that has it; NULL where none has. Filled in when the patch is loaded. */
  struct livegraft_state *previous;
};

/* Declares the variable `name`, a struct livegraft_state. */
#define LIVEGRAFT_STATE(name, id, version)                                                                \
  static struct livegraft_state name __attribute__((section(".livegraft.states"), used)) = {id, version, 0, 0}

#endif
