// Sec-WebSocket-Accept (RFC 6455, section 4.2.2): SHA-1 and base64, so that nothing has to be linked for it.
#ifndef ACCEPT_KEY_H
#define ACCEPT_KEY_H

#include <stdint.h>
#include <string.h>

#define WEBSOCKET_GUID "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

static inline uint32_t rotate_left(uint32_t x, int n) { return x << n | x >> (32 - n); }

// Of at most 119 bytes: two blocks.
static void sha1(const uint8_t *data, size_t size, uint8_t digest[20])
{
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    uint8_t padded[128] = {0};
    size_t total = size + 9 > 64 ? 128 : 64;
    memcpy(padded, data, size);
    padded[size] = 0x80;
    for (int i = 0; i < 8; i++) padded[total - 1 - i] = (uint64_t)size * 8 >> (8 * i);
    for (const uint8_t *block = padded; block < padded + total; block += 64) {
        uint32_t w[80];
        for (int i = 0; i < 16; i++)
            w[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
        for (int i = 16; i < 80; i++) w[i] = rotate_left(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            uint32_t f, k;
            if (i < 20) f = (b & c) | (~b & d), k = 0x5A827999;
            else if (i < 40) f = b ^ c ^ d, k = 0x6ED9EBA1;
            else if (i < 60) f = (b & c) | (b & d) | (c & d), k = 0x8F1BBCDC;
            else f = b ^ c ^ d, k = 0xCA62C1D6;
            uint32_t next = rotate_left(a, 5) + f + e + k + w[i];
            e = d, d = c, c = rotate_left(b, 30), b = a, a = next;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = h[i / 4] >> (24 - 8 * (i % 4));
}

// `text` gets 4 characters for each 3 bytes, and a NUL.
static void base64(const uint8_t *data, int size, char *text)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < size; i += 3) {
        uint32_t v = data[i] << 16 | (i + 1 < size ? data[i + 1] << 8 : 0) | (i + 2 < size ? data[i + 2] : 0);
        *text++ = digits[v >> 18];
        *text++ = digits[v >> 12 & 63];
        *text++ = i + 1 < size ? digits[v >> 6 & 63] : '=';
        *text++ = i + 2 < size ? digits[v & 63] : '=';
    }
    *text = 0;
}

// `key` is the 24 characters of Sec-WebSocket-Key; `accept` gets 28 and a NUL.
static inline void accept_key(const char *key, char accept[29])
{
    uint8_t text[60], digest[20];
    memcpy(text, key, 24);
    memcpy(text + 24, WEBSOCKET_GUID, 36);
    sha1(text, sizeof text, digest);
    base64(digest, sizeof digest, accept);
}

#endif
