-- label runs of one model in different prompt modes: mean IoU per part, and every change of status between them
with marked as (
    select *, regexp_replace(prompt_version, '-[0-9a-f]+$', '') as mode from labels
), pairs as (
    select a.mode as first_mode, b.mode as second_mode, a.label_run as first_run, b.label_run as second_run,
        a.model, a.dataset, a.part, a.status as first_status, b.status as second_status,
        greatest(0, least(a.x_max, b.x_max) - greatest(a.x_min, b.x_min))
            * greatest(0, least(a.y_max, b.y_max) - greatest(a.y_min, b.y_min)) as overlap,
        (a.x_max - a.x_min) * (a.y_max - a.y_min) as first_area,
        (b.x_max - b.x_min) * (b.y_max - b.y_min) as second_area
    from marked a
    join marked b using (engine, model, dataset, image_id, part)
    where a.mode < b.mode
)
select first_mode, second_mode, first_run, second_run, model, dataset, part, first_status, second_status,
    count(*) as images,
    round(100.0 * count(*) / sum(count(*)) over (partition by first_run, second_run, model, dataset, part), 2)
        as percent,
    round(avg(overlap / (first_area + second_area - overlap)), 4) as mean_iou
from pairs
group by first_mode, second_mode, first_run, second_run, model, dataset, part, first_status, second_status
order by model, dataset, first_run, second_run, part, images desc, first_status, second_status
