"""Diffusion: noise schedules, guidance, samplers, UNets in two halves, denoisers known in closed form.

| module | holds |
|---|---|
| ``noise`` | alpha and sigma over time (DDPM tables, EDM), conversions between eps, x0 and v |
| ``denoiser`` | the call that trainers and samplers ask for; classifier-free guidance; EDM preconditioning |
| ``samplers`` | DDIM, Euler, Heun, DPM-Solver++(2M), any scheduler of diffusers |
| ``unet`` | a small class-conditional UNet |
| ``split``, ``adapters`` | UNets as encoder and decoder, diffusers' too; counters of calls and FLOPs |
| ``analytic`` | exact denoisers of Gaussian mixtures; how far a score is from the true one |
| ``generators`` | one step and few steps: a denoiser's network asked for the clean sample |
| ``scores`` | the teacher and the fake score of score distillation: two networks, or one with adapters |
| ``score_distiller`` | the loop of both: drawing times and noise, null conditions, the generator's average |
| ``conditions`` | embeddings of prompts, made once |
| ``mlp`` | a denoiser for points |
| ``pictures`` | contact sheets |
"""
