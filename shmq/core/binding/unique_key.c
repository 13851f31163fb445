/* unique_key.c: where a producer's unique keys begin. */
#include "unique_key.h"

#include <errno.h>
#include <sys/random.h>

static int unique_keys_prefix(uint8_t *property)
{
    uint32_t own;
    if (getrandom(&own, sizeof own, 0) != (ssize_t)sizeof own) {
        return -1;
    }
    uint64_t address = shmq_hex_digits(0x7f000001u);
    uint64_t process = shmq_hex_digits((uint32_t)getpid() << 16);
    uint64_t random = shmq_hex_digits(own);
    memcpy(property, "UNIQ_KEY\x01", SHMQ_UNIQUE_KEY_PLACE);
    uint8_t *key = property + SHMQ_UNIQUE_KEY_PLACE;
    memcpy(key, &address, 8);
    memcpy(key + 8, &process, 4);
    memcpy(key + 12, &random, 8);
    property[SHMQ_UNIQUE_PROPERTY_SIZE - 1] = SHMQ_PROPERTY_VALUE_END;
    return 0;
}

int shmq_unique_keys_begin(struct shmq_unique_keys *self)
{
    time_t now = time(NULL);
    struct tm calendar;
    if (gmtime_r(&now, &calendar) == NULL) {
        return -1;
    }
    uint64_t into_month_s = (uint64_t)(calendar.tm_mday - 1) * 86400u + (uint64_t)calendar.tm_hour * 3600u +
                            (uint64_t)calendar.tm_min * 60u + (uint64_t)calendar.tm_sec;
    self->month_begin_ms = ((uint64_t)now - into_month_s) * 1000u;
    self->last_id = 0;
    self->prefix_index = 0;
    return unique_keys_prefix(self->property[0]);
}

uint64_t shmq_unique_keys_wrap(struct shmq_unique_keys *self)
{
    self->prefix_index ^= 1;
    (void)unique_keys_prefix(self->property[self->prefix_index]); /* it worked when the producer began */
    return 0;
}

PyObject *shmq_unique_key_text(const struct shmq_unique_keys *self, uint64_t id)
{
    PyObject *key = PyUnicode_New(SHMQ_UNIQUE_KEY_SIZE, 127);
    if (key != NULL) {
        shmq_unique_keys_text(self, id, PyUnicode_1BYTE_DATA(key));
    }
    return key;
}
