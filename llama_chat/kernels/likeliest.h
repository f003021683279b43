/* The most likely tokens. */

#ifndef LIKELIEST_H
#define LIKELIEST_H

/* Logits whose largest is compared first. */
enum { LOGIT_BLOCK = 32 };

#endif
